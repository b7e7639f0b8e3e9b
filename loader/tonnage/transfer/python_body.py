"""Receives bodies in Python, where the compiled part is missing.

libcurl calls back with at most 16 KiB, 60,000 times a GB, so the callback does as little as possible: one CRC-32 over
bytes that are still in the CPU's cache, and one append. The received ``bytes`` are written by ``pwritev``, a MiB at a
time and without joining them, which was faster than a buffer in every measurement.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pycurl
from isal import isal_zlib

from tonnage.source.request_failure import BODY_LIMIT
from tonnage.transfer.body import CAPTURED, CHECKSUMMED

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage.transfer.huge_pages import HugePageAllocator
    from tonnage.transfer.protocol import Fetch

FLUSH_BYTES = 1 << 20
MAX_VECTORS = 512
"""Buffers per ``pwritev``; the kernel's limit is 1024."""

_ABORT = -1
"""Return value of a callback that makes libcurl abort the transfer."""


class PythonBody:
    """See ``body.Body``.

    Args:
        files: Returns the file descriptor of an output file, which is opened on first use.
        huge_pages: Allocates the pages that are written; None: the file system does.
    """

    __slots__ = (
        "_accepted",
        "_buffered_bytes",
        "_captured",
        "_checksum",
        "_checksums",
        "_crc_function",
        "_descriptors",
        "_fetch",
        "_file",
        "_files",
        "_huge_pages",
        "_is_data",
        "_other_body",
        "_piece",
        "_piece_end",
        "_refused",
        "_vectors",
        "_write_at",
        "at",
        "crc",
        "too_long",
        "unreported_bytes",
        "write_error",
    )

    def __init__(self, files: Callable[[int], int], huge_pages: HugePageAllocator | None = None) -> None:
        self._files = files
        self._huge_pages = huge_pages
        self._vectors: list[bytes | memoryview] = []
        self.unreported_bytes = 0

    def start(self, curl: pycurl.Curl, fetch: Fetch, crc: str) -> None:
        self._fetch = fetch
        self._accepted = self._refused = False
        self._other_body = bytearray()
        self._checksums: list[int] = []
        self._captured: list[bytes] = []
        self._crc_function = _crc_by_name(crc) if crc else None
        self._descriptors = {number: self._files(number) for number in {piece[3] for piece in fetch.pieces}}
        self._file = -1
        self._piece = -1
        self._piece_end = fetch.start
        self._checksum = 0
        self._is_data = False
        self._buffered_bytes = 0
        self._write_at = -1
        self.at = fetch.start
        self.crc = 0
        self.too_long = False
        self.write_error = 0
        self._next_piece()
        curl.setopt(pycurl.WRITEFUNCTION, self._on_body)

    @property
    def other_body(self) -> bytes:
        return bytes(self._other_body)

    def decide(self, *, accepted: bool) -> None:
        self._accepted, self._refused = accepted, not accepted

    def finish(self) -> None:
        self._flush()

    def results(self) -> tuple[list[int], list[bytes]]:
        checksums = self._checksums
        if self._piece < len(self._fetch.pieces) and self.at > self._piece_start():
            checksums = [*checksums, self._checksum]
        return checksums, self._captured[: len(checksums)]

    def _piece_start(self) -> int:
        return self._fetch.pieces[self._piece - 1][0] if self._piece else self._fetch.start

    def _next_piece(self) -> None:
        self._piece += 1
        if self._piece >= len(self._fetch.pieces):
            return
        self._piece_end, role, target, number = self._fetch.pieces[self._piece]
        self._checksum = 0
        self._is_data = role in CHECKSUMMED and target >= 0
        self._captured.append(b"")
        file = self._descriptors[number]
        if target != self._write_at + self._buffered_bytes or file != self._file:
            self._flush()
            self._file = file
            self._write_at = target

    def _on_body(self, data: bytes) -> int | None:
        self.unreported_bytes += len(data)
        if not self._accepted:
            if len(self._other_body) < BODY_LIMIT:
                self._other_body += data
            return _ABORT if self._refused else None
        end = self.at + len(data)
        if self._is_data and end <= self._piece_end:
            self._checksum = isal_zlib.crc32(data, self._checksum)
            if self._crc_function is not None:
                self.crc = self._crc_function(data, self.crc)
            self._vectors.append(data)
            self._buffered_bytes += len(data)
            self.at = end
            if self._buffered_bytes >= FLUSH_BYTES or len(self._vectors) >= MAX_VECTORS:
                self._flush()
            if end == self._piece_end:
                self._checksums.append(self._checksum)
                self._next_piece()
            return _ABORT if self.write_error else None
        return self._on_mixed(data)

    def _on_mixed(self, received: bytes) -> int | None:
        """Handles bytes that are not all tensor data of the current piece."""
        if self.at + len(received) > self._fetch.end:
            self.too_long = True
            return _ABORT
        if self._crc_function is not None:
            self.crc = self._crc_function(received, self.crc)
        data = memoryview(received)
        while data:
            chunk = data[: self._piece_end - self.at]
            _, role, target, _ = self._fetch.pieces[self._piece]
            if role in CHECKSUMMED:
                self._checksum = isal_zlib.crc32(chunk, self._checksum)
            elif role in CAPTURED:
                self._captured[-1] += chunk
            if target >= 0:
                self._vectors.append(chunk)
                self._buffered_bytes += len(chunk)
            self.at += len(chunk)
            data = data[len(chunk) :]
            if self.at == self._piece_end:
                self._checksums.append(self._checksum)
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


def _crc_by_name(name: str) -> Callable[[bytes, int], int] | None:
    from tonnage.contract import ChecksumAlgorithm  # only for objects with such a checksum
    from tonnage.format.checksums import crc_function

    return crc_function(ChecksumAlgorithm(name))
