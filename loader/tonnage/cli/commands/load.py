"""``tonnage load``."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import msgspec

from tonnage.cli import output
from tonnage.cli.invocation import LONG_REPORT_TIMEOUT, REPORT_TIMEOUT
from tonnage.cli.plan_arguments import cache_folder, plan_from_arguments
from tonnage.cli.progress_output import progress_view
from tonnage.cli.redaction import redact
from tonnage.cli.status_files import StatusFiles
from tonnage.cli.summary import load_summary
from tonnage.contract.report import ReportKind, encode_report
from tonnage.errors import Interrupted, TonnageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from tonnage.cli.invocation import Invocation
    from tonnage.contract.report import Progress, Report
    from tonnage.loading.load import LoadResult


def run(arguments: argparse.Namespace, invocation: Invocation) -> int:
    """Loads, tells everybody how it went, and holds the entry where that is wanted.

    Raises:
        TonnageError: It can't be loaded.
    """
    files = StatusFiles.from_arguments(arguments)
    files.remove_stale_ready_file()
    try:
        result = _load(arguments, invocation)
    except TonnageError as error:
        files.mark_failed(error.reason, redact(error.message, invocation.environment))
        if arguments.on_failure != "continue" or isinstance(error, Interrupted):
            raise
        return _continue_without_weights(error, files, arguments, invocation)
    files.mark_loaded(result.report.entry)
    if output.is_terminal(sys.stderr) and arguments.progress != "off":
        output.print_stderr(load_summary(result.report))
    report = invocation.emit_report(result.report)
    invocation.send_report(report, timeout=REPORT_TIMEOUT if result.lock is None else LONG_REPORT_TIMEOUT)
    if result.lock is not None:
        _hold([result.lock.fileno()], report, invocation)
    return 0


def _load(arguments: argparse.Namespace, invocation: Invocation) -> LoadResult:
    """Loads; a defect is an error like any other here, for the pod may be meant to go on without its weights."""
    try:
        return _run_load(arguments, invocation)
    except TonnageError:
        raise
    except Exception as defect:
        raise invocation.to_internal_error(defect) from defect


def _run_load(arguments: argparse.Namespace, invocation: Invocation) -> LoadResult:
    cache = cache_folder(arguments)
    plan = invocation.plan = plan_from_arguments(arguments)
    from tonnage.loading import run_plan

    reporter = invocation.start_reporting()

    def on_progress(progress: Progress) -> None:
        view.show(progress)
        if reporter is not None:
            reporter.progress(progress)

    with progress_view(arguments.progress) as view:
        return run_plan(
            plan,
            cache=cache,
            environment=invocation.environment,
            on_progress=on_progress,
            canceled=invocation.cancellation.canceled,
            keep_lock=arguments.hold,
        )


def _continue_without_weights(
    error: TonnageError, files: StatusFiles, arguments: argparse.Namespace, invocation: Invocation
) -> int:
    """Lets the pod start without its weights, and in a sidecar stays as a holder would, with nothing to hold."""
    invocation.cancellation.canceled()  # from here on a signal must not cut the report off
    files.mark_ready_without_weights()
    invocation.report_failure(error)
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
    from tonnage.cli.hold import STOP_SIGNALS, exec_holder

    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if not invocation.cancellation.canceled():
        exec_holder(descriptors, exit_command=[] if report is None else _release_report_command(report, invocation))


def _release_report_command(report: Report, invocation: Invocation) -> list[str]:
    """The command that reports the release; empty where nobody wants to know."""
    endpoint = invocation.endpoint
    if endpoint is None:
        return []
    from tonnage.reporting.release import build_command

    released = msgspec.structs.replace(invocation.base_report(), kind=ReportKind.RELEASED, entry=report.entry)
    return build_command(endpoint, encode_report(released))
