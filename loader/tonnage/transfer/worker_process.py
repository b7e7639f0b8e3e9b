"""Starts and ends worker processes.

They are forked from a process that is started by ``exec``, not from this one: ``tonnage.load`` may be called in a
process with threads, CUDA and gigabytes of memory. Their arguments and environment contain no secrets; credentials are
sent over the socket.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

from tonnage.transfer.protocol import RECEIVE_BYTES, FrameDecoder, ToCoordinator, encode_frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self

    from tonnage.transfer.protocol import ToWorker

_BOOT = "import sys;sys.path[:]=sys.argv[2:];from tonnage.transfer.worker_host import main;main(int(sys.argv[1]))"
_MALLOC_SETTINGS = {"MALLOC_TRIM_THRESHOLD_": str(128 << 20), "MALLOC_TOP_PAD_": str(8 << 20)}
"""A worker frees a MiB of received bytes a thousand times a second. By default glibc returns the memory to the kernel
each time and faults it in again, which took a tenth of the worker's CPU time."""
_NUMBER = struct.Struct("<i")
"""As in ``worker_host``, which is not imported here."""
EXIT_SECONDS = 5.0
"""Longer than the host waits for a worker."""


class WorkerHost:
    """The process from which workers are forked. It needs a tenth of a second to start, which it does on its own.

    Args:
        pass_fds: File descriptors that workers inherit, so that locks on them stay held while any worker writes,
            even if this process was killed.
        environment: Variables, of which workers get those without secrets.
    """

    def __init__(self, *, pass_fds: Sequence[int], environment: Mapping[str, str]) -> None:
        self._pass_fds = pass_fds
        self._environment = environment
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start_worker(self) -> WorkerProcess:
        """Starts a worker. If the host itself was killed, it is replaced; its workers go on without it.

        Raises:
            OSError: The host can't be started.
        """
        try:
            return self._fork()
        except OSError:
            self.close()
            self._start()
            return self._fork()

    def close(self) -> None:
        """Ends the process. Close its workers before."""
        self._control.close()
        try:
            self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        self._started = 0
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(  # noqa: S603  # this interpreter, no shell
                [sys.executable, "-I", "-S", "-c", _BOOT, str(other.fileno()), *sys.path],
                pass_fds=(other.fileno(), *self._pass_fds),
                env=_worker_environment(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _fork(self) -> WorkerProcess:
        ours, other = socket.socketpair()
        number = _NUMBER.pack(self._started)
        with other:
            try:
                socket.send_fds(self._control, [number], [other.fileno()])
            except OSError:
                ours.close()
                raise
        self._started += 1
        return WorkerProcess(ours, self._control, number)


class WorkerProcess:
    """A worker process and the socket to it.

    Args:
        connection: The socket to the worker.
        control: The socket to its host.
        number: The host's number of the worker.
    """

    def __init__(self, connection: socket.socket, control: socket.socket, number: bytes) -> None:
        self.socket = connection
        self._control = control
        self._number = number
        self._decoder = FrameDecoder(ToCoordinator)

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
        """Asks the worker to exit, which it does when it notices that nothing more will be sent."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> int:
        """Ends the worker and returns its exit code, negative for a signal.

        After this call it writes nothing more. If its host was killed, its code is unknown, and taken for SIGKILL's.
        """
        self.disconnect()
        answer = b""
        with contextlib.suppress(OSError):
            self._control.send(self._number)
            answer = self._control.recv(_NUMBER.size)
        if not answer:
            self._wait_for_exit()
        self.socket.close()
        return int(_NUMBER.unpack(answer)[0]) if answer else -signal.SIGKILL

    def _wait_for_exit(self) -> None:
        """Waits until the worker's end of the socket is closed, which nothing but its exit does."""
        self.socket.settimeout(EXIT_SECONDS)
        with contextlib.suppress(OSError):
            while self.socket.recv(RECEIVE_BYTES):
                pass


def _worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables for a worker: proxies, certificate paths, the locale. No credentials."""
    wanted = ("_proxy", "_PROXY", "SSL_CERT_", "CURL_", "LANG", "LC_", "LD_LIBRARY_PATH", "TZ", "PATH")
    return (
        {name: value for name, value in environment.items() if name.startswith(wanted) or name.endswith(wanted[:2])}
        | _MALLOC_SETTINGS
        | {"PYTHONDONTWRITEBYTECODE": "1", "HOME": os.devnull}
    )
