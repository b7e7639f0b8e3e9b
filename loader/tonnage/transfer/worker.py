"""The worker process: one CurlMulti, several connections, and one Python thread that moves the bytes.

A worker knows nothing about models. It fetches the ranges that the coordinator assigns, computes their CRC-32, writes
them to the given files and sends the results. It exits when the coordinator's socket closes, for whatever reason.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import time
from typing import TYPE_CHECKING

import pycurl

from tonnage.transfer.connection import Connection
from tonnage.transfer.protocol import (
    RECEIVE_BYTES,
    Fetch,
    FetchFailed,
    FetchSucceeded,
    FrameDecoder,
    Hash,
    Received,
    SetConnections,
    Setup,
    ToCoordinator,
    ToWorker,
    UpdateCredentials,
    UpdateTarget,
    WriteFailed,
    encode_frame,
)

if TYPE_CHECKING:
    from tonnage.source.request_target import Credentials, RequestTarget
    from tonnage.transfer.body import Body
    from tonnage.transfer.compiled_body import ReceiveLibrary
    from tonnage.transfer.huge_pages import HugePageAllocator
    from tonnage.transfer.sha256_worker import Sha256Worker

TICK_SECONDS = 0.2
"""Interval for reporting bytes in flight, so that progress is shown before parts are complete."""


def main(descriptor: int) -> None:
    """Runs a worker on an inherited socket until the coordinator closes it; then ends the process."""
    Worker(descriptor).run()
    os._exit(0)  # libcurl's cleanup would wait for the threads that resolve names


class Worker:
    """The state of one worker process.

    Args:
        control: The socket's file descriptor. It is read and written directly, because ``socket`` is slow to import.
    """

    def __init__(self, control: int) -> None:
        os.set_blocking(control, False)
        self._control = control
        self._decoder = FrameDecoder(ToWorker)
        self._outgoing = bytearray()
        self._multi = pycurl.CurlMulti()
        self._queue: collections.deque[Fetch] = collections.deque()
        self._idle: list[Connection] = []
        self._busy: dict[pycurl.Curl, Connection] = {}
        self._connections = 1
        self._stall_seconds = 0
        self._targets: list[RequestTarget] = []
        self._credential_indexes: list[int] = []
        self._credentials: list[Credentials | None] = []
        self._paths: list[str] = []
        self._crcs: list[str] = []
        self._library: ReceiveLibrary | None = None
        self._descriptors: dict[int, int] = {}
        self._reported = time.monotonic()
        self._sha256_worker: Sha256Worker | None = None
        self._in_tmpfs = False
        self._huge_pages: HugePageAllocator | None = None

    def run(self) -> None:
        """Handles the coordinator's messages until its socket closes."""
        while self._poll():
            self._start_queued()
            while self._multi.perform()[0] == pycurl.E_CALL_MULTI_PERFORM:
                pass
            self._collect()
            for connection in self._busy.values():
                connection.set_low_water_mark()
            self._start_queued()
            self._tick()
            self._flush()

    def _poll(self) -> bool:
        """Waits for events and handles messages; returns False when the coordinator's socket is closed."""
        reading, writing, failing = self._multi.fdset()
        timeout = min(max(self._multi.timeout(), 0) / 1000 if self._busy else 1.0, TICK_SECONDS if self._busy else 1.0)
        if self._busy and not reading and not writing:
            timeout = min(timeout, 0.01)
        readable, _, _ = select.select(
            [*reading, self._control, *([self._sha256_worker.wakeup_fd] if self._sha256_worker else [])],
            [*writing, *([self._control] if self._outgoing else [])],
            failing,
            timeout,
        )
        if self._sha256_worker and self._sha256_worker.wakeup_fd in readable:
            for result in self._sha256_worker.finished():
                self._send(result)
        if self._control not in readable:
            return True
        try:
            data = os.read(self._control, RECEIVE_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        for message in self._decoder.feed(data):
            self._handle(message)
        return bool(data)

    def _handle(self, message: object) -> None:
        match message:
            case Fetch():
                self._queue.append(message)
            case SetConnections(connections, kept):
                self._connections = connections
                self._multi.setopt(pycurl.M_MAXCONNECTS, max(connections, kept))
            case UpdateCredentials(source, credentials):
                self._credentials[source] = credentials
            case UpdateTarget(index, target):
                self._targets[index] = target
            case Hash():
                if self._sha256_worker is None:
                    from tonnage.transfer.sha256_worker import Sha256Worker

                    self._sha256_worker = Sha256Worker(self._descriptor)
                self._sha256_worker.submit(message)
            case Setup(targets, sources, credentials, files, stall_seconds, in_tmpfs, huge_pages, crcs, library):
                self._targets, self._credential_indexes, self._credentials = targets, sources, credentials
                self._paths, self._stall_seconds = files, stall_seconds
                self._crcs, self._in_tmpfs = crcs, in_tmpfs
                if huge_pages:
                    from tonnage.transfer.huge_pages import HugePageAllocator

                    self._huge_pages = HugePageAllocator()
                self._library = load_library(library)
            case _:
                raise TypeError(f"unexpected message {type(message).__name__}")

    def _descriptor(self, file: int) -> int:
        if file not in self._descriptors:
            self._descriptors[file] = os.open(self._paths[file], os.O_RDWR | os.O_CLOEXEC)
        return self._descriptors[file]

    def _new_body(self, curl: pycurl.Curl) -> Body:
        """Makes what receives the bodies of a handle's responses: the compiled part, if it can."""
        if self._library is not None:
            from tonnage.transfer.compiled_body import CompiledBody

            with contextlib.suppress(LookupError):
                return CompiledBody(
                    self._library,
                    curl,
                    self._descriptor,
                    in_tmpfs=self._in_tmpfs,
                    huge_pages=self._huge_pages is not None,
                )
        from tonnage.transfer.python_body import PythonBody

        return PythonBody(self._descriptor, self._huge_pages)

    def _start_queued(self) -> None:
        """Starts queued parts on idle connections."""
        while self._queue and len(self._busy) < self._connections:
            fetch = self._queue.popleft()
            connection = self._idle.pop() if self._idle else Connection(self._new_body)
            credentials = self._credentials[self._credential_indexes[fetch.target]]
            try:
                connection.start(
                    fetch,
                    self._targets[fetch.target],
                    credentials,
                    stall_seconds=self._stall_seconds,
                    crc=self._crcs[fetch.target] if self._crcs else "",
                )
            except OSError as error:
                self._idle.append(connection)
                self._send(WriteFailed(fetch.id, error.errno or 5))
                continue
            self._busy[connection.curl] = connection
            self._multi.add_handle(connection.curl)

    def _collect(self) -> None:
        """Reports the parts that have ended."""
        queued = 1
        while queued:
            queued, succeeded, failed = self._multi.info_read()
            for curl in succeeded:
                self._end(curl, None)
            for curl, code, _ in failed:
                self._end(curl, code)

    def _end(self, curl: pycurl.Curl, code: int | None) -> None:
        connection = self._busy.pop(curl)
        failure = connection.finish(code)
        self._multi.remove_handle(curl)
        if connection.body.write_error:
            self._send(WriteFailed(connection.fetch.id, connection.body.write_error))
        elif failure is None:
            self._send(FetchSucceeded(*_received(connection)))
        else:
            self._send(FetchFailed(*_received(connection), failure, connection.status))
        self._report(connection)
        self._idle.append(connection)

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._reported >= TICK_SECONDS:
            self._reported = now
            for connection in self._busy.values():
                self._report(connection)

    def _report(self, connection: Connection) -> None:
        if connection.body.unreported_bytes:
            self._send(Received(connection.body.unreported_bytes))
            connection.body.unreported_bytes = 0

    def _send(self, message: ToCoordinator) -> None:
        self._outgoing += encode_frame(message)

    def _flush(self) -> None:
        while self._outgoing:
            try:
                sent = os.write(self._control, self._outgoing)
            except BlockingIOError:
                return
            except OSError:
                self._outgoing.clear()
                return
            del self._outgoing[:sent]


def _received(connection: Connection) -> tuple[int, int, list[int], list[bytes], int]:
    """Returns the fields of a ``Result``."""
    checksums, captured = connection.body.results()
    return connection.fetch.id, connection.written_end, checksums, captured, connection.body.crc


def load_library(path: str) -> ReceiveLibrary | None:
    """Returns the compiled part that receives bodies; None where it is missing."""
    if not path or not os.path.exists(path):  # noqa: PTH110  # pathlib is slow to import
        return None
    from tonnage.transfer.compiled_body import ReceiveLibrary  # not where it is missing
    from tonnage.transfer.curl_handle import libcurl

    libcurl()
    with contextlib.suppress(OSError, AttributeError, ValueError):
        return ReceiveLibrary(path)
    return None
