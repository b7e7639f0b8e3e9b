"""Identifies processes by ID and start time, so that a process with a reused ID is never signaled."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_STATE = 0
_PARENT = 1
_STARTED = 19
"""Fields of ``/proc/<pid>/stat`` after the name in parentheses."""


@dataclass(frozen=True)
class ProcessIdentity:
    """A process: its ID and its start time, in clock ticks since the boot."""

    pid: int
    started: int

    @classmethod
    def from_pid(cls, pid: int) -> ProcessIdentity | None:
        """Returns the process that has this ID now, or None."""
        fields = _stat(pid)
        return cls(pid, int(fields[_STARTED])) if fields else None

    def is_running(self) -> bool:
        """Whether it exists and is not a zombie."""
        fields = _stat(self.pid)
        return bool(fields) and int(fields[_STARTED]) == self.started and fields[_STATE] not in "ZX"

    def send_signal(self, number: int) -> bool:
        """Sends a signal. Returns False if the process has exited."""
        with self._pidfd() as handle:
            if handle is None or not self.is_running():
                return False
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
                return True
            return False

    def wait_for_exit(self, timeout: float) -> bool:
        """Waits up to ``timeout`` seconds for its exit. Returns whether it has exited."""
        with self._pidfd() as handle:
            if handle is None or not self.is_running():
                return True
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            return bool(poll.poll(timeout * 1000))

    @contextlib.contextmanager
    def _pidfd(self) -> Iterator[int | None]:
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            yield handle
        finally:
            os.close(handle)


def children(pid: int) -> list[int]:
    """Returns the IDs of the processes whose parent is ``pid``."""
    return [each for each in all_pids() if (fields := _stat(each)) and int(fields[_PARENT]) == pid]


def all_pids() -> list[int]:
    """Returns the IDs of all processes."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def command_line(pid: int) -> list[str]:
    """Returns the arguments of a process, the program's name first; empty if it has exited."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rstrip("\0").split("\0") if text else []


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()
