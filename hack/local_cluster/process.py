"""One long-running program: started in a process group of its own, remembered by id and start time, ended by id."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from local_cluster.errors import NotRunning, StartFailed
from local_cluster.process_identity import ProcessIdentity, children

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_STOP_TIMEOUT = 10.0
"""Seconds that a program gets to end after SIGTERM before it is killed."""
_POLL = 0.1
"""Seconds between two questions whether a program answers: it has no way to tell by itself."""
_LOG_TAIL = 3000
"""Characters of a log that an error quotes."""


@dataclass
class Process:
    """A program with its arguments and its log.

    ``readiness_probe`` says whether it does its work by now. ``command_prefix`` returns what to put in front of the
    command to have it run elsewhere (see ``machine``); that must start the program as its only child and end with it.
    """

    name: str
    command: Sequence[str | Path]
    log: Path
    command_prefix: Callable[[], Sequence[str]] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    readiness_probe: Callable[[], bool] | None = None
    identity: ProcessIdentity | None = None
    _popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The program's process id on this machine.

        Raises:
            NotRunning: It was never started.
        """
        if self.identity is None:
            raise NotRunning(f"{self.name} was not started.")
        return self.identity.pid

    @property
    def is_running(self) -> bool:
        """Whether the program runs now."""
        if self._popen is not None:
            self._popen.poll()
        return self.identity is not None and self.identity.is_running()

    def start(self) -> None:
        """Starts the program; its log is continued. Returns when its process exists, see ``wait_until_ready``.

        Raises:
            StartFailed: It ended before it could be seen.
        """
        command = [*(self.command_prefix() if self.command_prefix else ()), *map(str, self.command)]
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
        self.identity = self._find_process(self._popen)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to the program. After SIGKILL, returns when it has ended."""
        if self.identity is None or not self.identity.send_signal(number):
            return
        if number == signal.SIGKILL:
            self._wait_for_exit(_STOP_TIMEOUT)

    def stop(self) -> None:
        """Ends the program: asks it, and after 10 seconds kills it. Does nothing when it has ended already."""
        self.kill(signal.SIGTERM)
        if not self._wait_for_exit(_STOP_TIMEOUT):
            self.kill(signal.SIGKILL)

    def restart(self) -> None:
        """Ends the program if it runs, starts it again with the same arguments, and returns when it does its work.

        Raises:
            StartFailed: It ended, or did not answer within 60 seconds; the message ends with its log.
        """
        self.stop()
        self.start()
        self.wait_until_ready()

    def wait_until_ready(self, timeout: float = 60) -> None:
        """Returns when the program does its work.

        Raises:
            StartFailed: It ended, or did not answer within ``timeout`` seconds; the message ends with its log.
        """
        deadline = time.monotonic() + timeout
        while self.readiness_probe is not None and not self.readiness_probe():
            if not self.is_running:
                raise StartFailed(f"{self.name} ended:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise StartFailed(f"{self.name} did not answer within {timeout:.0f} s:\n{self.tail()}")
            time.sleep(_POLL)

    def tail(self) -> str:
        """Returns the end of the log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return text[-_LOG_TAIL:]

    def _wait_for_exit(self, timeout: float) -> bool:
        ended = self.identity is None or self.identity.wait_for_exit(timeout)
        if ended and self._popen is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(_STOP_TIMEOUT)
        return ended

    def _find_process(self, starter: subprocess.Popen[bytes]) -> ProcessIdentity:
        """Returns the program itself, which is a child of ``starter`` where something else starts it."""
        deadline = time.monotonic() + _STOP_TIMEOUT
        while starter.poll() is None and time.monotonic() < deadline:
            pids = children(starter.pid) if self.command_prefix else [starter.pid]
            if pids and (identity := ProcessIdentity.from_pid(pids[0])):
                return identity
            time.sleep(0.002)  # the kernel has no event for "it forked"
        raise StartFailed(f"{self.name} ended:\n{self.tail()}")
