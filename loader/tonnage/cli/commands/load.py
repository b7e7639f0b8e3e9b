"""``tonnage load``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tonnage.cli import output
from tonnage.cli.invocation import LONG_REPORT_TIMEOUT, REPORT_TIMEOUT
from tonnage.cli.plan_arguments import cache_or_folder, is_path, plan_from_arguments
from tonnage.cli.progress_output import progress_view
from tonnage.cli.redaction import redact
from tonnage.cli.status_files import StatusFiles
from tonnage.contract.report import Outcome
from tonnage.contract.sizes import human_bytes
from tonnage.errors import CacheDamaged, CacheInUse, CacheNotWritable, InsufficientSpace, Interrupted, TonnageError

if TYPE_CHECKING:
    import argparse

    from tonnage.cli.invocation import Invocation
    from tonnage.contract.report import ArtifactsSize, Progress, Report
    from tonnage.loading.load import LoadResult

_VERIFICATION_TEXT = {
    "crc32": "verified by CRC-32",
    "sha256": "verified by SHA-256",
    "size": "checked by size and revision",
}


def run(arguments: argparse.Namespace, invocation: Invocation) -> int:
    """Loads the model, reports the result, and with ``--hold`` keeps the entry in use. Several folders: one by one.

    Raises:
        TonnageError: The load failed, and ``--on-failure`` is not ``continue``.
    """
    if any(is_path(word) for word in arguments.sources):
        from tonnage.cli.storage_initializer import loads_of, translate_environment

        for remark in translate_environment(arguments, invocation.environment):
            output.print_stderr(f"tonnage: {remark}")
        return max(_run_one(each, invocation) for each in loads_of(arguments))
    return _run_one(arguments, invocation)


def _run_one(arguments: argparse.Namespace, invocation: Invocation) -> int:
    files = StatusFiles.from_arguments(arguments)
    files.mark_started()
    try:
        result = _load(arguments, invocation, files)
    except TonnageError as error:
        files.mark_failed(error.reason, redact(error.message, invocation.environment))
        if arguments.on_failure != "continue" or isinstance(error, Interrupted):
            raise
        return _continue_without_weights(error, files, arguments, invocation)
    files.mark_loaded(result.report.entry)
    if output.is_terminal(sys.stderr) and arguments.progress != "off":
        output.print_stderr(_summary(result.report))
    report = invocation.emit_report(result.report)
    invocation.send_report(report, timeout=REPORT_TIMEOUT if result.lock is None else LONG_REPORT_TIMEOUT)
    if result.lock is not None:
        from tonnage.cli.commands.hold import hold_locks

        hold_locks([result.lock.fileno()], invocation)
    return 0


def _load(arguments: argparse.Namespace, invocation: Invocation, files: StatusFiles) -> LoadResult:
    """Loads the model. Raises any unexpected exception as an InternalError, so that ``--on-failure`` applies to it."""
    try:
        artifacts = _prepare_artifacts(arguments, invocation)
        if arguments.plugin:
            from tonnage.cli.commands.plugin import write_plugin

            write_plugin(Path(arguments.plugin))
        cache = cache_or_folder(arguments)
        plan = invocation.plan = plan_from_arguments(arguments)
        from tonnage.loading import run_plan

        reporter = invocation.start_reporting()

        def on_progress(progress: Progress) -> None:
            view.show(progress)
            if reporter is not None:
                reporter.progress(progress)

        with progress_view(arguments.progress) as view:
            result = run_plan(
                plan,
                cache=cache,
                environment=invocation.environment,
                on_progress=on_progress,
                canceled=invocation.cancellation.canceled,
                keep_lock=arguments.hold,
                on_readable=files.mark_readable if arguments.stream else None,
                may_fork=True,
            )
    except TonnageError as error:
        if arguments.into and type(error) in FOLDER_REMEDIES:
            error.remedy = FOLDER_REMEDIES[type(error)]
        raise
    except Exception as error:
        raise invocation.to_internal_error(error) from error
    result.report = msgspec.structs.replace(result.report, artifacts=artifacts)
    return result


FOLDER_REMEDIES: dict[type[TonnageError], str] = {
    InsufficientSpace: "Free space there, enlarge the volume or the memory limit, or load into another folder.",
    CacheNotWritable: "Give this user write permission on the folder, or load into another one.",
    CacheDamaged: "Remove the folder that the message names, and load again.",
    CacheInUse: "Wait for the other load, or load into another folder.",
}
"""What to do next where no cache is involved."""


def _prepare_artifacts(arguments: argparse.Namespace, invocation: Invocation) -> tuple[ArtifactsSize, ...]:
    if not arguments.artifacts:
        return ()
    from tonnage.cache.artifacts import prepare_artifacts

    canceled = invocation.cancellation.canceled
    return tuple(prepare_artifacts(Path(each), canceled=canceled) for each in arguments.artifacts)


def _summary(report: Report) -> str:
    """Returns entry, size, rate, verification, notes and path, for a terminal."""
    proof = _VERIFICATION_TEXT.get(report.verified, "not verified")
    tensors = "1 tensor" if report.tensors == 1 else f"{report.tensors:,} tensors"
    if report.outcome is Outcome.HIT:
        where = f"{report.entry} in the cache" if report.entry else f"revision {report.revision} in the folder"
        what = f"Found {where}: {human_bytes(report.bytes)}, {tensors} {proof} "
        what += f"(hit in {report.seconds * 1000:.0f} ms)"
    else:
        rate = report.downloaded_bytes / report.seconds / 1e9 if report.seconds else 0.0
        what = f"Loaded {report.entry or report.revision}: {human_bytes(report.bytes)} in {report.seconds:.1f} s "
        what += f"({rate:.2f} GB/s"
        what += f", {human_bytes(report.resumed_bytes)} resumed" if report.resumed_bytes else ""
        what += f"), {tensors} {proof}"
    return "\n".join([what, *(f"  note: {note}" for note in report.notes), f"  → {report.path}"])


def _continue_without_weights(
    error: TonnageError, files: StatusFiles, arguments: argparse.Namespace, invocation: Invocation
) -> int:
    """Lets the pod start without weights; with ``--hold`` runs as a holder without an entry."""
    invocation.cancellation.canceled()  # from now on a signal must not interrupt the report
    files.mark_ready_without_weights()
    invocation.report_failure(error)
    if arguments.hold:
        from tonnage.cli.commands.hold import hold_locks

        hold_locks([], invocation)
    return 0
