"""One long-running program of a cluster, in its own session, identified by process ID and start time."""

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
"""Seconds between SIGTERM and SIGKILL."""
_POLL = 0.1
"""Seconds between readiness probes; the programs have no readiness notification."""
_LOG_TAIL = 3000
"""Maximum number of characters of a log in an error."""


@dataclass
class Process:
    """A program with its arguments and its log.

    ``readiness_probe`` returns whether it is ready. ``command_prefix`` returns the prefix of the command line that runs
    it on the node (see ``machine``); the prefix must start the program as its only child and exit with it.
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
        """The program's process ID on this machine.

        Raises:
            NotRunning: It was never started.
        """
        if self.identity is None:
            raise NotRunning(f"{self.name} was not started.")
        return self.identity.pid

    @property
    def is_running(self) -> bool:
        if self._popen is not None:
            self._popen.poll()
        return self.identity is not None and self.identity.is_running()

    def start(self) -> None:
        """Starts the program and appends to its log. Returns when its process exists; see ``wait_until_ready``.

        Raises:
            StartFailed: It exited immediately.
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
        """Sends a signal to the program. After SIGKILL, waits for its exit."""
        if self.identity is None or not self.identity.send_signal(number):
            return
        if number == signal.SIGKILL:
            self._wait_for_exit(_STOP_TIMEOUT)

    def stop(self) -> None:
        """Sends SIGTERM, and SIGKILL after 10 seconds. Does nothing if the program has exited already."""
        self.kill(signal.SIGTERM)
        if not self._wait_for_exit(_STOP_TIMEOUT):
            self.kill(signal.SIGKILL)

    def restart(self) -> None:
        """Stops the program if it is running, starts it again with the same arguments, and waits until it is ready.

        Raises:
            StartFailed: It exited, or was not ready within 60 seconds; the message ends with its log.
        """
        self.stop()
        self.start()
        self.wait_until_ready()

    def wait_until_ready(self, timeout: float = 60) -> None:
        """Waits until the program is ready.

        Raises:
            StartFailed: It exited, or was not ready within ``timeout`` seconds; the message ends with its log.
        """
        deadline = time.monotonic() + timeout
        while self.readiness_probe is not None and not self.readiness_probe():
            if not self.is_running:
                raise StartFailed(f"{self.name} exited:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise StartFailed(f"{self.name} was not ready within {timeout:.0f} s:\n{self.tail()}")
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
        """Returns the program's process: ``starter``, or its child if there is a command prefix."""
        deadline = time.monotonic() + _STOP_TIMEOUT
        while starter.poll() is None and time.monotonic() < deadline:
            pids = children(starter.pid) if self.command_prefix else [starter.pid]
            if pids and (identity := ProcessIdentity.from_pid(pids[0])):
                return identity
            time.sleep(0.002)  # the kernel has no event for a fork
        raise StartFailed(f"{self.name} exited:\n{self.tail()}")
