"""The worker process: one CurlMulti, several slots, one Python thread that moves bytes.

It knows nothing of models: it fetches the ranges that it is told, computes their CRC-32, writes them where it is told
and reports. It ends when the coordinator's socket closes, whatever the reason.
"""

from __future__ import annotations

import collections
import os
import select
import time
from typing import TYPE_CHECKING

import pycurl
from isal import isal_zlib

from tonnage.transfer.protocol import (
    Fetch,
    Fetched,
    FetchFailed,
    Hash,
    Received,
    Renew,
    Retarget,
    Setup,
    ToCoordinator,
    ToWorker,
    Tune,
    Unframer,
    WriteFailed,
    frame,
)
from tonnage.transfer.slot import Slot

if TYPE_CHECKING:
    from tonnage.source.target import Credentials, RequestTarget
    from tonnage.transfer.hasher import Hasher

RECEIVE_BYTES = 1 << 18
TICK_SECONDS = 0.2
"""How often bytes in flight are reported, so that progress moves between the ends of parts."""


def main(descriptor: int) -> None:
    """Runs a worker on an inherited socket until the other side closes it."""
    Worker(descriptor).run()


class Worker:
    """The state of one worker process.

    Args:
        control: The socket's descriptor. It is read and written as such: the module for sockets takes time to import.
    """

    def __init__(self, control: int) -> None:
        os.set_blocking(control, False)
        self._control = control
        self._unframer = Unframer(ToWorker)
        self._outgoing = bytearray()
        self._multi = pycurl.CurlMulti()
        self._queue: collections.deque[Fetch] = collections.deque()
        self._idle: list[Slot] = []
        self._busy: dict[pycurl.Curl, Slot] = {}
        self._connections = 1
        self._stall_seconds = 0
        self._targets: list[RequestTarget] = []
        self._sources: list[int] = []
        self._credentials: list[Credentials | None] = []
        self._paths: list[str] = []
        self._descriptors: dict[int, int] = {}
        self._reported = time.monotonic()
        self._hasher: Hasher | None = None

    def run(self) -> None:
        """Serves the coordinator until it goes away."""
        while self._listen():
            self._fill()
            while self._multi.perform()[0] == pycurl.E_CALL_MULTI_PERFORM:
                pass
            self._collect()
            self._fill()
            self._tick()
            self._flush()

    def _listen(self) -> bool:
        """Waits until something can be done, and takes messages; False when the coordinator is gone."""
        reading, writing, failing = self._multi.fdset()
        timeout = min(max(self._multi.timeout(), 0) / 1000 if self._busy else 1.0, TICK_SECONDS if self._busy else 1.0)
        if self._busy and not reading and not writing:
            timeout = min(timeout, 0.01)
        readable, _, _ = select.select(
            [*reading, self._control, *([self._hasher.wake] if self._hasher else [])],
            [*writing, *([self._control] if self._outgoing else [])],
            failing,
            timeout,
        )
        if self._hasher and self._hasher.wake in readable:
            for answer in self._hasher.finished():
                self._send(answer)
        if self._control not in readable:
            return True
        try:
            data = os.read(self._control, RECEIVE_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        for message in self._unframer.feed(data):
            self._take(message)
        return bool(data)

    def _take(self, message: object) -> None:
        match message:
            case Fetch():
                self._queue.append(message)
            case Tune(connections):
                self._connections = connections
                self._multi.setopt(pycurl.M_MAXCONNECTS, connections)
            case Renew(source, credentials):
                self._credentials[source] = credentials
            case Retarget(index, target):
                self._targets[index] = target
            case Hash():
                if self._hasher is None:
                    from tonnage.transfer.hasher import Hasher

                    self._hasher = Hasher(self._descriptor)
                self._hasher.submit(message)
            case Setup(targets, sources, credentials, files, stall_seconds):
                self._targets, self._sources, self._credentials = targets, sources, credentials
                self._paths, self._stall_seconds = files, stall_seconds
            case _:
                raise TypeError(f"unexpected message {type(message).__name__}")

    def _descriptor(self, file: int) -> int:
        if file not in self._descriptors:
            self._descriptors[file] = os.open(self._paths[file], os.O_RDWR | os.O_CLOEXEC)
        return self._descriptors[file]

    def _fill(self) -> None:
        """Starts queued parts on free slots."""
        while self._queue and len(self._busy) < self._connections:
            fetch = self._queue.popleft()
            slot = self._idle.pop() if self._idle else Slot(isal_zlib.crc32, self._descriptor)
            credentials = self._credentials[self._sources[fetch.target]]
            try:
                slot.start(
                    fetch,
                    self._targets[fetch.target],
                    credentials,
                    stall_seconds=self._stall_seconds,
                )
            except OSError as error:
                self._idle.append(slot)
                self._send(WriteFailed(fetch.id, error.errno or 5))
                continue
            self._busy[slot.curl] = slot
            self._multi.add_handle(slot.curl)

    def _collect(self) -> None:
        """Reports the parts that ended."""
        queued = 1
        while queued:
            queued, succeeded, failed = self._multi.info_read()
            for curl in succeeded:
                self._end(curl, None)
            for curl, code, _ in failed:
                self._end(curl, code)

    def _end(self, curl: pycurl.Curl, code: int | None) -> None:
        slot = self._busy.pop(curl)
        self._multi.remove_handle(curl)
        failure = slot.finish(code)
        if slot.write_error:
            self._send(WriteFailed(slot.fetch.id, slot.write_error))
        elif failure is None:
            self._send(Fetched(slot.fetch.id, slot.good_end, slot.checksums, slot.captured))
        else:
            self._send(FetchFailed(slot.fetch.id, slot.good_end, slot.checksums, slot.captured, failure))
        self._report(slot)
        self._idle.append(slot)

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._reported >= TICK_SECONDS:
            self._reported = now
            for slot in self._busy.values():
                self._report(slot)

    def _report(self, slot: Slot) -> None:
        if slot.received:
            self._send(Received(slot.received))
            slot.received = 0

    def _send(self, message: ToCoordinator) -> None:
        self._outgoing += frame(message)

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
