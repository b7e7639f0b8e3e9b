"""``tonnage load``."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import msgspec

from tonnage.cli import output
from tonnage.cli.invocation import LONG_PATIENCE, PATIENCE
from tonnage.cli.pod_files import PodFiles
from tonnage.cli.progress import progress_view
from tonnage.cli.redaction import redact
from tonnage.cli.request import cache_folder, requested_plan
from tonnage.cli.summary import load_summary
from tonnage.contract.report import ReportKind, encode_report
from tonnage.errors import Interrupted, TonnageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from tonnage.cli.invocation import Invocation
    from tonnage.contract.report import Progress, Report
    from tonnage.loading.run import LoadResult


def run(arguments: argparse.Namespace, invocation: Invocation) -> int:
    """Loads, tells everybody how it went, and holds the entry where that is wanted.

    Raises:
        TonnageError: It can't be loaded.
    """
    files = PodFiles.of(arguments)
    files.begin()
    try:
        result = _load(arguments, invocation)
    except TonnageError as error:
        files.failed(error.reason, redact(error.message, invocation.environment))
        if arguments.on_failure != "continue" or isinstance(error, Interrupted):
            raise
        return _go_on_without(error, files, arguments, invocation)
    files.loaded(result.report.entry)
    if output.is_terminal(sys.stderr) and arguments.progress != "off":
        output.say(load_summary(result.report))
    report = invocation.leave(result.report)
    invocation.send(report, patience=PATIENCE if result.lock is None else LONG_PATIENCE)
    if result.lock is not None:
        _hold([result.lock.fileno()], report, invocation)
    return 0


def _load(arguments: argparse.Namespace, invocation: Invocation) -> LoadResult:
    """Loads; a defect is an error like any other here, for the pod may be meant to go on without its weights."""
    try:
        return _load_reporting(arguments, invocation)
    except TonnageError:
        raise
    except Exception as defect:
        raise invocation.unexpected(defect) from defect


def _load_reporting(arguments: argparse.Namespace, invocation: Invocation) -> LoadResult:
    cache = cache_folder(arguments)
    plan = invocation.plan = requested_plan(arguments)
    from tonnage.loading import load_plan

    reporter = invocation.start_reporting()

    def on_progress(progress: Progress) -> None:
        view.show(progress)
        if reporter is not None:
            reporter.progress(progress)

    with progress_view(arguments.progress) as view:
        return load_plan(
            plan,
            cache=cache,
            environment=invocation.environment,
            on_progress=on_progress,
            canceled=invocation.cancellation.canceled,
            keep_lock=arguments.hold,
        )


def _go_on_without(error: TonnageError, files: PodFiles, arguments: argparse.Namespace, invocation: Invocation) -> int:
    """Lets the pod start without its weights, and in a sidecar stays as a holder would, with nothing to hold."""
    invocation.cancellation.canceled()  # from here on a signal must not cut the report off
    files.go_on()
    invocation.fail(error)
    if arguments.hold:
        _hold([], None, invocation)
    return 0


def _hold(descriptors: Sequence[int], report: Report | None, invocation: Invocation) -> None:
    """Becomes the holder, unless the signal that ends one has come already; none is lost in between.

    Args:
        descriptors: What to hold.
        report: Of the load; its release is reported as well, where the plan wants reports.
        invocation: Knows of signals and where reports go.
    """
    from tonnage.cli.hold import ENDING, become_holder

    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    if not invocation.cancellation.canceled():
        become_holder(descriptors, afterwards=[] if report is None else _farewell(report, invocation))


def _farewell(report: Report, invocation: Invocation) -> list[str]:
    """The command that reports the release; empty where nobody wants to know."""
    endpoint = invocation.endpoint
    if endpoint is None:
        return []
    from tonnage.reporting.release import command

    released = msgspec.structs.replace(invocation.template(), kind=ReportKind.RELEASED, entry=report.entry)
    return command(endpoint, encode_report(released))
