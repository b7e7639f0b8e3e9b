"""Starts and ends worker processes.

Workers are started by ``exec``, not by ``fork`` alone: ``tonnage.load`` may be called in a process with threads, CUDA
and gigabytes of memory. Their arguments and environment contain no secrets; credentials are sent over the socket.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from tonnage.transfer.protocol import RECEIVE_BYTES, FrameDecoder, ToCoordinator, encode_frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tonnage.transfer.protocol import ToWorker

_BOOT = "import sys;sys.path[:]=sys.argv[2:];from tonnage.transfer.worker import main;main(int(sys.argv[1]))"
_MALLOC_SETTINGS = {"MALLOC_TRIM_THRESHOLD_": str(128 << 20), "MALLOC_TOP_PAD_": str(8 << 20)}
"""A worker frees a MiB of received bytes a thousand times a second. By default glibc returns the memory to the kernel
each time and faults it in again, which took a tenth of the worker's CPU time."""
EXIT_SECONDS = 2.0


class WorkerProcess:
    """A worker process and the socket to it.

    Args:
        pass_fds: File descriptors that the worker inherits, so that locks on them stay held while any worker writes,
            even if this process was killed.
        environment: Variables, of which the worker gets those without secrets.
    """

    def __init__(self, *, pass_fds: Sequence[int], environment: Mapping[str, str]) -> None:
        self.socket, other = socket.socketpair()
        self._decoder = FrameDecoder(ToCoordinator)
        with other:
            self._process = subprocess.Popen(  # noqa: S603  # this interpreter, no shell
                [sys.executable, "-I", "-S", "-c", _BOOT, str(other.fileno()), *sys.path],
                pass_fds=(other.fileno(), *pass_fds),
                env=_worker_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def send(self, message: ToWorker) -> None:
        """Sends a message. If the worker has exited, the next ``receive`` raises ``EOFError``."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(encode_frame(message))

    def receive(self) -> Iterator[object]:
        """Yields the messages received so far.

        Raises:
            EOFError: The worker has exited.
        """
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        yield from self._decoder.feed(data)

    def disconnect(self) -> None:
        """Closes the socket; the worker exits when it notices."""
        self.socket.close()

    def close(self) -> int:
        """Ends the worker and returns its exit code, negative for a signal."""
        self.disconnect()
        try:
            return self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            return self._process.wait()


def _worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables for a worker: proxies, certificate paths, the locale. No credentials."""
    wanted = ("_proxy", "_PROXY", "SSL_CERT_", "CURL_", "LANG", "LC_", "LD_LIBRARY_PATH", "TZ", "PATH")
    return (
        {name: value for name, value in environment.items() if name.startswith(wanted) or name.endswith(wanted[:2])}
        | _MALLOC_SETTINGS
        | {"PYTHONDONTWRITEBYTECODE": "1", "HOME": os.devnull}
    )
