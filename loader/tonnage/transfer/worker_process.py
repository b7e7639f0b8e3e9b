"""Starting and ending worker processes.

They are started by ``exec``, not by ``fork``: ``tonnage.load`` may be called in a process that holds threads, CUDA and
gigabytes. Nothing secret is in their arguments or environment; credentials come over the socket.
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
"""A worker frees a MiB of received bytes a thousand times a second. glibc would give it back to the kernel each time
and fault it in again, which took a tenth of the worker's processor time."""
EXIT_SECONDS = 2.0


class WorkerProcess:
    """One worker and the socket to it.

    Args:
        pass_fds: File descriptors that the worker inherits, so that locks on them outlive this process only as long as
            somebody still writes.
        environment: Where secrets are left out.
    """

    def __init__(self, *, pass_fds: Sequence[int], environment: Mapping[str, str]) -> None:
        self.socket, other = socket.socketpair()
        self._decoder = FrameDecoder(ToCoordinator)
        with other:
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and our own code
                [sys.executable, "-I", "-S", "-c", _BOOT, str(other.fileno()), *sys.path],
                pass_fds=(other.fileno(), *pass_fds),
                env=_worker_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def send(self, message: ToWorker) -> None:
        """Sends a message. A worker that is gone is noticed when its socket is read."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(encode_frame(message))

    def receive(self) -> Iterator[object]:
        """Yields the messages that are there.

        Raises:
            EOFError: The worker is gone.
        """
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        yield from self._decoder.feed(data)

    def disconnect(self) -> None:
        """Closes the socket, upon which the worker ends."""
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
    """What a worker needs of the environment: proxies, certificate paths, the locale. No credential."""
    wanted = ("_proxy", "_PROXY", "SSL_CERT_", "CURL_", "LANG", "LC_", "LD_LIBRARY_PATH", "TZ", "PATH")
    return (
        {name: value for name, value in environment.items() if name.startswith(wanted) or name.endswith(wanted[:2])}
        | _MALLOC_SETTINGS
        | {"PYTHONDONTWRITEBYTECODE": "1", "HOME": os.devnull}
    )
