"""Real child processes for tests of locks and crashes, forked so that they start in milliseconds."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    SendLine = Callable[[str], None]

UNPRIVILEGED_UID = 65534
AUDIT_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "shutil.rmtree")


class ChildProcess:
    """A child process that runs ``work`` and exits with 0, or with 1 and a traceback if it raised.

    ``work`` gets a function that sends a line to the parent, which reads it with ``read_line``.
    """

    def __init__(self, work: Callable[[SendLine], object], *, uid: int | None = None) -> None:
        read_fd, write_fd = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _run(work, read_fd, write_fd, uid)
        os.close(write_fd)
        self._lines = os.fdopen(read_fd)
        self._status: int | None = None

    def read_line(self) -> str:
        """Returns the child's next line; empty if it has exited."""
        return self._lines.readline().rstrip("\n")

    def kill(self, signum: int = signal.SIGKILL) -> int:
        os.kill(self.pid, signum)
        return self.wait()

    def wait(self) -> int:
        """Waits until it exits and returns its exit code, negative for a signal."""
        if self._status is None:
            _, status = os.waitpid(self.pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
            self._lines.close()
        return self._status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is None:
            self.kill()


def run_in_child(work: Callable[[], object], *, uid: int | None = None) -> int:
    """Runs ``work`` in a child process and returns its exit code, negative for a signal."""
    return ChildProcess(lambda _send_line: work(), uid=uid).wait()


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_operation(work: Callable[[], object], number: int) -> bool:
    """Runs ``work`` in a child that is killed (SIGKILL) before file operation ``number``, counted from 0.

    Returns:
        False if ``work`` finished with fewer operations.
    """

    def run() -> None:
        remaining = number

        def count(event: str, _arguments: object) -> None:
            nonlocal remaining
            if event in AUDIT_EVENTS:
                if remaining == 0:
                    kill_self()
                remaining -= 1

        sys.addaudithook(count)
        work()

    exit_code = run_in_child(run)
    assert exit_code in {0, -signal.SIGKILL}
    return exit_code != 0


def _run(work: Callable[[SendLine], object], read_fd: int, write_fd: int, uid: int | None) -> None:
    def send_line(text: str) -> None:
        os.write(write_fd, text.encode() + b"\n")

    exit_code = 1
    try:
        os.close(read_fd)
        if uid is not None:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
        work(send_line)
        exit_code = 0
    except BaseException:  # noqa: BLE001 - the child must not continue as a second pytest
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
