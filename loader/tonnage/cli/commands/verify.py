"""``tonnage verify``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tonnage.cache.verify import verify_entry
from tonnage.cli import output
from tonnage.cli.entry_arguments import select_entries
from tonnage.cli.progress_output import progress_view
from tonnage.contract.plan import Verify
from tonnage.contract.report import Progress
from tonnage.contract.sizes import human_bytes
from tonnage.errors import CacheDamaged, Interrupted, TonnageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from tonnage.cache.entry import Entry
    from tonnage.cache.verify import VerifyResult
    from tonnage.cli.invocation import Invocation


def run(arguments: argparse.Namespace, invocation: Invocation) -> int:
    """Verifies entries, continuing after failures, and returns the exit code of the first failure.

    Raises:
        ObjectNotFound: An entry doesn't exist.
        InvalidPlan: A prefix is ambiguous, or the level is none.
        Interrupted: A signal was received.
    """
    level = arguments.level or Verify.CRC32
    results: list[dict[str, object]] = []
    exit_code = 0
    for entry in select_entries(arguments):
        try:
            with progress_view(arguments.progress) as view:
                result = lock_and_verify(entry, level, on_progress=view.show, canceled=invocation.cancellation.canceled)
        except Interrupted:
            raise
        except TonnageError as error:
            output.print_error(error, invocation.environment)
            results.append({"name": entry.name, "sound": False, "reason": error.reason, "message": error.message})
            exit_code = exit_code or error.exit_code
            continue
        results.append({"name": entry.name, "sound": True, **result._asdict(), "seconds": round(result.seconds, 3)})
        if not arguments.json:
            print(result_summary(entry.name, result), flush=True)
    if arguments.json:
        output.write_json({"entries": results})
    return exit_code


def lock_and_verify(
    entry: Entry, level: Verify, *, on_progress: Callable[[Progress], None], canceled: Callable[[], bool]
) -> VerifyResult:
    """Verifies one entry while holding its use lock. Changes nothing.

    Raises:
        CacheDamaged: The entry differs from its manifest.
        Interrupted: ``canceled`` returned True.
    """
    began = time.monotonic()

    def report_progress(done: int, total: int) -> None:
        rate = done / max(time.monotonic() - began, 1e-3)
        left = (total - done) / rate if rate else -1.0
        on_progress(
            Progress(
                phase="verifying",
                loaded_bytes=done,
                total_bytes=total,
                bytes_per_second=rate,
                remaining_seconds=left,
            )
        )

    if not entry.use_lock_path.exists():
        raise CacheDamaged(f"{entry.path} has no {entry.use_lock_path.name}, so it can't be locked for verification.")
    with entry.acquire_use_lock(canceled=canceled):
        return verify_entry(entry, level=level, progress=report_progress, canceled=canceled)


def result_summary(name: str, result: VerifyResult) -> str:
    """Returns the line that is printed for a verified entry."""
    tensors = "1 tensor" if result.tensors == 1 else f"{result.tensors:,} tensors"
    if result.bytes:
        rate = result.bytes / result.seconds / 1e9 if result.seconds else 0.0
        read = f", {human_bytes(result.bytes)} read in {result.seconds:.1f} s ({rate:.2f} GB/s)"
    else:
        read = ""
    notes = "".join(f"\n  note: {note}" for note in result.notes)
    return f"{name} is intact: {tensors}, {result.verified.value}{read}{notes}"
