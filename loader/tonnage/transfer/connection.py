"""One connection of a worker, and the part that it fetches.

libcurl calls back with at most 16 KiB, 60,000 times a GB, so the callback does as little as possible: one CRC-32 over
bytes that are still in the CPU's cache, and one append. The received ``bytes`` are written by ``pwritev``, a MiB at a
time and without joining them, which was faster than a buffer in every measurement.
"""

from __future__ import annotations

import _socket  # not ``socket``, which is slow to import
import os
from typing import TYPE_CHECKING

import pycurl

from tonnage.errors import Reason
from tonnage.planning.segments import SpanRole
from tonnage.source.error_classification import BODY_LIMIT, RequestFailure, Retry, classify
from tonnage.source.request_target import RECEIVE_BUFFER, configure_handle
from tonnage.source.responses import check_partial, parse_headers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage.source.request_target import Credentials, RequestTarget
    from tonnage.transfer.huge_pages import HugePageAllocator
    from tonnage.transfer.protocol import Fetch

FLUSH_BYTES = 1 << 20
PEER_CONNECT_SECONDS = 3.0
PEER_STALL_SECONDS = 5
"""Peers are near, and there are others, so they get less time than a store."""
MAX_VECTORS = 512
"""Buffers per ``pwritev``; the kernel's limit is 1024."""

LOW_WATER_BYTES = 256 << 10
"""Bytes that must have arrived before a connection is readable. Over a network each ``select`` returned for a few
KiB otherwise, and the calls took more CPU time than the bytes."""

_CHECKSUMMED = frozenset({SpanRole.DATA, SpanRole.OPAQUE})
"""Contents whose CRC-32 is computed. The others are short and go to the coordinator as they are."""

_ABORT = -1
"""Return value of a callback that makes libcurl abort the transfer."""


def low_water_mark(remaining: int) -> int:
    """Returns how many bytes must have arrived for a connection to be readable (``SO_RCVLOWAT``).

    Args:
        remaining: Bytes of the response's body that libcurl has not passed on; up to ``RECEIVE_BUFFER`` of them may
            have left the socket.
    """
    return LOW_WATER_BYTES if remaining >= LOW_WATER_BYTES + RECEIVE_BUFFER else 1


class Connection:
    """A reusable curl handle and the state of one part.

    Args:
        crc32: ``(data, value) -> value``.
        files: Returns the file descriptor of an output file, which is opened on first use.
        huge_pages: Allocates the pages that are written; None: the file system does.
    """

    __slots__ = (
        "_buffered_bytes",
        "_checksum",
        "_crc32",
        "_crc_function",
        "_descriptors",
        "_file",
        "_files",
        "_huge_pages",
        "_is_data",
        "_lines",
        "_low_water_mark",
        "_piece",
        "_piece_end",
        "_vectors",
        "_write_at",
        "accepted",
        "at",
        "captured",
        "checksums",
        "crc",
        "curl",
        "error_body",
        "failure",
        "fetch",
        "status",
        "target",
        "unreported_bytes",
        "write_error",
    )

    def __init__(
        self,
        crc32: Callable[[bytes, int], int],
        files: Callable[[int], int],
        huge_pages: HugePageAllocator | None = None,
    ) -> None:
        self.curl = pycurl.Curl()
        self._huge_pages = huge_pages
        self._crc32 = crc32
        self._files = files
        self._vectors: list[bytes | memoryview] = []
        self._lines: list[bytes] = []
        self._low_water_mark = 1
        self.unreported_bytes = 0

    def start(
        self,
        fetch: Fetch,
        target: RequestTarget,
        credentials: Credentials | None,
        *,
        stall_seconds: int,
        crc: Callable[[bytes, int], int] | None = None,
    ) -> None:
        """Prepares the handle for a part. The caller adds it to its multi handle.

        Args:
            fetch: The part.
            target: Its object.
            credentials: The credentials to sign with; None leaves the request unsigned.
            stall_seconds: How long the transfer may stay below ``STALL_BYTES`` a second before it is aborted.
            crc: ``(data, value) -> value`` of a CRC to compute over all bytes, in addition to CRC-32.
        """
        self.fetch = fetch
        self.target = target = target if fetch.peer is None else fetch.peer
        self.status = 0
        self.at = fetch.start
        self.accepted = False
        self.failure: RequestFailure | None = None
        self.write_error = 0
        self.error_body = bytearray()
        self.checksums: list[int] = []
        self.captured: list[bytes] = []
        self.crc = 0
        self._crc_function = crc
        self._descriptors = {number: self._files(number) for number in {piece[3] for piece in fetch.pieces}}
        self._file = -1
        self._piece = -1
        self._piece_end = fetch.start
        self._checksum = 0
        self._is_data = False
        self._buffered_bytes = 0
        self._write_at = -1
        self._lines.clear()
        self._next_piece()
        curl = self.curl
        if fetch.peer is None:
            configure_handle(curl, target, credentials, stall_seconds=stall_seconds)
        else:
            stall = min(stall_seconds, PEER_STALL_SECONDS)
            configure_handle(curl, target, None, stall_seconds=stall, connect_seconds=PEER_CONNECT_SECONDS)
            curl.setopt(pycurl.TIMEOUT_MS, max(1, int(fetch.seconds * 1000)))
        curl.setopt(pycurl.RANGE, f"{fetch.start + fetch.shift}-{fetch.end + fetch.shift - 1}")
        curl.setopt(pycurl.WRITEFUNCTION, self._on_body)
        curl.setopt(pycurl.HEADERFUNCTION, self._lines.append)
        if fetch.fresh_connection:
            curl.setopt(pycurl.FRESH_CONNECT, 1)
            curl.setopt(pycurl.FORBID_REUSE, 1)

    def set_low_water_mark(self) -> None:
        """Makes the connection readable only when many bytes have arrived, or any if few remain.

        Call it between calls of libcurl, and wait no longer than a fraction of a second for a connection: libcurl reads
        from all of them after that, so that a slow one is not taken for a stalled one.
        """
        self._apply_low_water_mark(low_water_mark(self.fetch.end - self.at) if self.accepted else 1)

    def _apply_low_water_mark(self, mark: int) -> None:
        if mark == self._low_water_mark:
            return
        self._low_water_mark = mark
        descriptor = self.curl.getinfo(pycurl.ACTIVESOCKET)
        if descriptor < 0:  # closed
            return
        borrowed = _socket.socket(fileno=descriptor)
        try:
            borrowed.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVLOWAT, mark)
        finally:
            borrowed.detach()

    def finish(self, curl_code: int | None) -> RequestFailure | None:
        """Ends the part: flushes buffered bytes and returns the failure, if any. Call it before the handle is removed.

        After this call, all bytes of the part before ``written_end`` are in the file.

        Args:
            curl_code: libcurl's error code; None on success.
        """
        self._apply_low_water_mark(1)  # another handle may get the connection
        self._flush()
        if self.failure is None and not self.accepted:
            self._check_response()
        if self.failure is None and not (self.accepted and curl_code is None):
            self.status, headers = parse_headers(self._lines)
            self.failure = classify(
                curl_code=curl_code,
                status=self.status,
                headers=headers,
                body=bytes(self.error_body),
                label=self.target.label,
                server=self.target.server,
                pinned=True,
            )
        if self.failure is None and self.at != self.fetch.end:
            self.failure = self._range_failure(f"ended at byte {self.at}")
        if self._piece < len(self.fetch.pieces) and self.at > self._piece_start():
            self._close_piece()
        return self.failure

    @property
    def written_end(self) -> int:
        """End of the bytes of this part that are in the file; the part's start if a write failed."""
        return self.fetch.start if self.write_error else self.at

    def _piece_start(self) -> int:
        return self.fetch.pieces[self._piece - 1][0] if self._piece else self.fetch.start

    def _next_piece(self) -> None:
        self._piece += 1
        if self._piece >= len(self.fetch.pieces):
            return
        self._piece_end, role, target, number = self.fetch.pieces[self._piece]
        self._checksum = 0
        self._is_data = role in _CHECKSUMMED
        if role in {SpanRole.HEADER, SpanRole.TAIL}:
            self.captured.append(b"")
        file = self._descriptors[number]
        if target != self._write_at + self._buffered_bytes or file != self._file:
            self._flush()
            self._file = file
            self._write_at = target

    def _close_piece(self) -> None:
        role = self.fetch.pieces[self._piece][1]
        self.checksums.append(self._checksum)
        if role not in {SpanRole.HEADER, SpanRole.TAIL}:
            self.captured.append(b"")

    def _on_body(self, data: bytes) -> int | None:
        self.unreported_bytes += len(data)
        if not self.accepted and not self._check_response():
            if len(self.error_body) < BODY_LIMIT:
                self.error_body += data
            return None if self.failure is None else _ABORT
        end = self.at + len(data)
        if self._is_data and end <= self._piece_end:
            self._checksum = self._crc32(data, self._checksum)
            if self._crc_function is not None:
                self.crc = self._crc_function(data, self.crc)
            self._vectors.append(data)
            self._buffered_bytes += len(data)
            self.at = end
            if self._buffered_bytes >= FLUSH_BYTES or len(self._vectors) >= MAX_VECTORS:
                self._flush()
            if end == self._piece_end:
                self._close_piece()
                self._next_piece()
            return _ABORT if self.write_error else None
        return self._on_mixed(data)

    def _on_mixed(self, received: bytes) -> int | None:
        """Handles bytes that are not all tensor data of the current piece."""
        if self.at + len(received) > self.fetch.end:
            self.failure = self._range_failure("was too long")
            return _ABORT
        if self._crc_function is not None:
            self.crc = self._crc_function(received, self.crc)
        data = memoryview(received)
        while data:
            chunk = data[: self._piece_end - self.at]
            _, role, target, _ = self.fetch.pieces[self._piece]
            if role in _CHECKSUMMED:
                self._checksum = self._crc32(chunk, self._checksum)  # type: ignore[arg-type]  # any buffer
            elif role in {SpanRole.HEADER, SpanRole.TAIL}:
                self.captured[-1] += chunk
            if target >= 0:
                self._vectors.append(chunk)
                self._buffered_bytes += len(chunk)
            self.at += len(chunk)
            data = data[len(chunk) :]
            if self.at == self._piece_end:
                self._close_piece()
                self._next_piece()
        if self._buffered_bytes >= FLUSH_BYTES or len(self._vectors) >= MAX_VECTORS:
            self._flush()
        return _ABORT if self.write_error else None

    def _flush(self) -> None:
        vectors = self._vectors
        at = self._write_at
        if self._huge_pages is not None and vectors:
            self._huge_pages.populate(self._file, at, at + self._buffered_bytes)
        try:
            while vectors and not self.write_error:
                written = os.pwritev(self._file, vectors, at)
                at += written
                if written == self._buffered_bytes:
                    vectors.clear()
                self._buffered_bytes -= written
                while vectors and written >= len(vectors[0]):
                    written -= len(vectors.pop(0))
                if vectors and written:
                    vectors[0] = memoryview(vectors[0])[written:]
        except OSError as error:
            self.write_error = error.errno or 5
        vectors.clear()
        self._buffered_bytes = 0
        self._write_at = at

    def _check_response(self) -> bool:
        """Checks that the response has the requested range of the pinned object.

        If not, and the status is 200 or 206, sets ``failure``.
        """
        self.status, headers = parse_headers(self._lines)
        if self.status not in {200, 206}:
            return False
        start, end = self.fetch.start + self.fetch.shift, self.fetch.end + self.fetch.shift
        self.failure = check_partial(self.target, status=self.status, headers=headers, start=start, end=end)
        self.accepted = self.failure is None
        return self.accepted

    def _range_failure(self, problem: str) -> RequestFailure:
        requested = f"bytes {self.fetch.start}-{self.fetch.end - 1}"
        message = f"{self.target.label}: the response to a request for {requested} {problem}."
        return RequestFailure(reason=Reason.RETRIES_EXHAUSTED, message=message, retry=Retry.BACKOFF)
