"""Asks botocore, in a process of its own, with a deadline. Imported only if variables and mounted files don't suffice.

The process has no terminal and no standard input, so that nothing can ask for input, and a process group of its own, so
that the programs that botocore starts end with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from tonnage.contract.plan import DECODE_ERRORS
from tonnage.errors import CredentialsMissing, EndpointUnreachable, Interrupted, Timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_SECONDS = 60.0
"""Seconds after which an answer is no longer waited for."""
POLL_SECONDS = 0.05
MAX_ANSWER_BYTES = 256 * 1024
_BOOT = (
    "import sys;sys.path[:]=sys.argv[3:];from tonnage.source.botocore_main import main;"
    "main(int(sys.argv[1]),int(sys.argv[2]))"
)
_INHERITED = ("PATH", "HOME", "LD_LIBRARY_PATH")


class BotocoreProcess:
    """A process that runs botocore, started by the first request and after each error.

    Args:
        environment: The variables that botocore reads.
        deadline: Value of ``time.monotonic()`` by which answers must have come; None: ``MAX_SECONDS`` for each.
        canceled: Polled several times a second; True ends waiting.
    """

    def __init__(self, environment: Mapping[str, str], *, deadline: float | None, canceled: Callable[[], bool]) -> None:
        self._environment = environment
        self._deadline = deadline
        self._canceled = canceled
        self._process: subprocess.Popen[bytes] | None = None
        self._requests = -1
        self._answers = -1
        self._received = bytearray()
        self._asked_at: float | None = None

    def ask(self, what: str) -> dict[str, Any]:
        """Returns the answer to a request, ``credentials``.

        Raises:
            Timeout: The deadline passed.
            Interrupted: ``canceled`` returned True.
            EndpointUnreachable: There was no answer within ``MAX_SECONDS``.
            CredentialsMissing: The process ended without an answer.
        """
        self.begin(what)
        while (answer := self.poll(POLL_SECONDS)) is None:
            if self._canceled():
                self.close()
                raise Interrupted("The load was interrupted while credentials were loaded.")
            if self._deadline is not None and time.monotonic() > self._deadline:
                self.close()
                raise Timeout("The deadline passed while credentials were loaded.")
        return answer

    def begin(self, what: str) -> None:
        """Sends a request, unless one is without an answer yet."""
        if self._asked_at is not None:
            return
        if self._process is None:
            self._start()
        self._asked_at = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it has ended, which the next poll reports
            os.write(self._requests, what.encode() + b"\n")

    def poll(self, seconds: float = 0.0) -> dict[str, Any] | None:
        """Waits up to ``seconds`` for the answer; None if there is none yet.

        Raises:
            EndpointUnreachable: There was no answer within ``MAX_SECONDS``.
            CredentialsMissing: The process ended without an answer.
        """
        if select.select([self._answers], [], [], seconds)[0]:
            data = os.read(self._answers, 1 << 16)
            self._received += data
            if not data or len(self._received) > MAX_ANSWER_BYTES:
                self.close()
                raise CredentialsMissing("Can't load credentials: botocore's process ended without an answer.")
            if b"\n" in data:
                return self._take_answer()
        if self._asked_at is not None and time.monotonic() - self._asked_at > MAX_SECONDS:
            self.close()
            raise EndpointUnreachable(
                f"Can't load credentials: what issues them gave no answer in {MAX_SECONDS:.0f} s.",
                remedy="Check the way to STS, IMDS, Pod Identity or SSO, or the profile's credential_process.",
            )
        return None

    def _take_answer(self) -> dict[str, Any]:
        line = bytes(self._received)
        self._received.clear()
        self._asked_at = None
        try:
            answer: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
        except DECODE_ERRORS as error:
            self.close()
            raise CredentialsMissing("Can't load credentials: botocore's process gave no valid answer.") from error
        if "error" in answer:
            self.close()
        return answer

    def _start(self) -> None:
        their_requests, self._requests = os.pipe()
        self._answers, their_answers = os.pipe()
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        try:
            self._process = subprocess.Popen(  # noqa: S603  # this interpreter, no shell
                [sys.executable, "-I", "-S", "-c", _BOOT, str(their_requests), str(their_answers), *sys.path],
                pass_fds=(their_requests, their_answers),
                env={**inherited, **self._environment, "PYTHONDONTWRITEBYTECODE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(their_requests)
            os.close(their_answers)

    def close(self) -> None:
        """Kills the process, if there is one, and what it started."""
        if self._process is None:
            return
        os.close(self._requests)
        os.close(self._answers)
        os.killpg(self._process.pid, signal.SIGKILL)  # not yet waited for, so the group exists
        self._process.wait()
        self._process, self._asked_at = None, None
        self._received.clear()
