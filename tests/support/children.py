"""Real child processes for tests of locks and of sudden death: forked, so that they start in milliseconds."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    Say = Callable[[str], None]

NOBODY = 65534
AUDITED = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "shutil.rmtree")


class Child:
    """A child process that runs ``work`` and then ends with 0, or with 1 and a traceback.

    ``work`` gets a function that says a line to the parent, who reads it with ``hear``.
    """

    def __init__(self, work: Callable[[Say], object], *, uid: int | None = None) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _run(work, reading, writing, uid)
        os.close(writing)
        self._lines = os.fdopen(reading)
        self._status: int | None = None

    def hear(self) -> str:
        """Returns the next line that the child says, empty when it has ended."""
        return self._lines.readline().rstrip("\n")

    def kill(self, number: int = signal.SIGKILL) -> int:
        os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> int:
        """Waits for its end and returns its exit code, negative for a signal."""
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


def in_child(work: Callable[[], object], *, uid: int | None = None) -> int:
    """Runs ``work`` in a child process and returns its exit code, negative for a signal."""
    return Child(lambda _say: work(), uid=uid).wait()


def die() -> None:
    """Ends this process as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at_operation(work: Callable[[], object], number: int) -> bool:
    """Runs ``work`` in a child that kill -9 ends before its file operation ``number``; False if it has fewer."""

    def run() -> None:
        left = number

        def count(event: str, _arguments: object) -> None:
            nonlocal left
            if event in AUDITED:
                if left == 0:
                    die()
                left -= 1

        sys.addaudithook(count)
        work()

    code = in_child(run)
    assert code in {0, -signal.SIGKILL}
    return code != 0


def _run(work: Callable[[Say], object], reading: int, writing: int, uid: int | None) -> None:
    def say(text: str) -> None:
        os.write(writing, text.encode() + b"\n")

    code = 1
    try:
        os.close(reading)
        if uid is not None:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
        work(say)
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the child must not run on as a second pytest
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
