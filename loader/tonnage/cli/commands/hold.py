"""``tonnage hold``, and the last step of ``tonnage load --hold``."""

from __future__ import annotations

import atexit
import signal
from typing import TYPE_CHECKING

from tonnage.cache.entry import EntryState
from tonnage.cli import output
from tonnage.cli.entry_arguments import select_entry
from tonnage.errors import CacheDamaged, Interrupted, ObjectNotFound, TonnageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from tonnage.cache.entry import Entry
    from tonnage.cache.locks import FileLock
    from tonnage.cli.invocation import Invocation


class _NotLoaded(ObjectNotFound):
    remedy = "Load it first, with `tonnage load`; `tonnage ls` shows the state of a cache's entries."


def run(arguments: argparse.Namespace, invocation: Invocation) -> int:
    """Keeps loaded entries in use until SIGTERM. Needs no permission to write to them.

    Raises:
        ObjectNotFound: An entry doesn't exist, or nothing is loaded in it.
        CacheDamaged: Its files don't match its manifest.
        Interrupted: A signal was received first.
    """
    locks = []
    for word in arguments.entries:
        try:
            locks.append(_lock(select_entry(word, arguments), invocation))
        except Interrupted:
            raise
        except TonnageError as error:
            if arguments.on_failure != "continue":
                raise
            output.print_error(error, invocation.environment)
    hold_locks([lock.fileno() for lock in locks], invocation)
    return 0


def _lock(entry: Entry, invocation: Invocation) -> FileLock:
    """Returns the use lock of an entry that is complete."""
    if not entry.use_lock_path.exists():
        raise _NotLoaded(f"Nothing is loaded in {entry.path}.")
    lock = entry.acquire_use_lock(canceled=invocation.cancellation.canceled)
    status = entry.read_status()
    if status.state is EntryState.DAMAGED:
        raise CacheDamaged(status.problem)
    if status.state is not EntryState.READY:
        raise _NotLoaded(f"Nothing is loaded in {entry.path}: it is {status.state}.")
    return lock


def hold_locks(descriptors: Sequence[int], invocation: Invocation) -> None:
    """Executes the holder unless a stop signal is pending. Signals are blocked across exec, so that none is lost.

    Args:
        descriptors: The locks to hold; none: the holder only waits.
        invocation: Has received signals.
    """
    from tonnage.cli.hold import STOP_SIGNALS, exec_holder

    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if not invocation.cancellation.canceled():
        atexit._run_exitfuncs()  # noqa: SLF001  # as at the end of other commands: they remove temporary files
        exec_holder(descriptors)
