"""Starts and ends worker processes, which are forked from a process of their own (``host_process``).

Credentials are sent to them over a socket.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
from typing import TYPE_CHECKING

from tonnage.transfer.host_process import EXIT_SECONDS, HostProcess
from tonnage.transfer.protocol import RECEIVE_BYTES, FrameDecoder, ToCoordinator, encode_frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self

    from tonnage.transfer.protocol import ToWorker

_NUMBER = struct.Struct("<i")
"""As in ``worker_host``, which is not imported here."""


class WorkerHost:
    """The process from which workers are forked.

    Args:
        pass_fds: File descriptors that workers inherit, so that locks on them stay held while any worker writes,
            even if this process was killed.
        environment: Variables, of which workers get those without secrets.
        may_fork: Whether this process may be forked.
    """

    def __init__(self, *, pass_fds: Sequence[int], environment: Mapping[str, str], may_fork: bool = False) -> None:
        self._pass_fds = pass_fds
        self._environment = environment
        self._may_fork = may_fork
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self, count: int) -> None:
        """Begins to start workers, which ``start_worker`` returns later: the host needs a millisecond for each."""
        with contextlib.suppress(OSError):  # the host was killed, which the first worker notices
            for _ in range(count):
                self._prepared.append(self._fork())

    def start_worker(self) -> WorkerProcess:
        """Starts a worker. If the host itself was killed, it is replaced; its workers go on without it.

        Raises:
            OSError: The host can't be started.
        """
        while self._prepared:
            worker = self._prepared.pop(0)
            if not worker.has_exited():
                return worker
            worker.close()
        try:
            return self._fork()
        except OSError:
            self.close()
            self._start()
            return self._fork()

    def close(self) -> None:
        """Ends the process, and workers that were only prepared. Close the others before."""
        for worker in self._prepared:
            worker.disconnect()
        while self._prepared:
            self._prepared.pop().close()
        self._process.close()

    def _start(self) -> None:
        self._prepared: list[WorkerProcess] = []
        self._started = 0
        self._process = HostProcess(pass_fds=self._pass_fds, environment=self._environment, may_fork=self._may_fork)

    def _fork(self) -> WorkerProcess:
        ours, other = socket.socketpair()
        number = _NUMBER.pack(self._started)
        with other:
            try:
                socket.send_fds(self._process.control, [number], [other.fileno()])
            except OSError:
                ours.close()
                raise
        self._started += 1
        return WorkerProcess(ours, self._process.control, number)


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

    def has_exited(self) -> bool:
        """Returns whether a worker that was sent nothing has exited, or was never forked."""
        try:
            return not self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

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
