"""Receives bodies by the compiled part, ``loader/native/receive.c``, if this installation has it.

libcurl then calls C for each 16 KiB, and Python only for headers. pycurl has no way to set a function of C, so it is
set by libcurl itself, on the handle that pycurl has made: see ``curl_handle``.
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING

from tonnage.source.request_failure import BODY_LIMIT
from tonnage.transfer.body import CAPTURED, CHECKSUMMED
from tonnage.transfer.curl_handle import libcurl

if TYPE_CHECKING:
    from collections.abc import Callable

    import pycurl

    from tonnage.transfer.protocol import Fetch

ABI = 2
"""The version of the functions and structures; a library with another one is not used."""

BUFFER_BYTES = 256 << 10
"""Bytes of one write: with libcurl's buffer they fit the second cache of a core, which has a MiB or more."""

_CHECKSUMMED, _CAPTURED = 1, 2
_IN_TMPFS, _BY_ADVICE = 1, 2
_ACCEPTED, _REFUSED = 1, 2
_ALGORITHMS = {"": 0, "crc64nvme": 1, "crc32c": 2}
_PIECE = struct.Struct("=QqII")
_POINTER, _U32, _U64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64


class _Output(ctypes.Structure):
    """``struct output``."""

    _fields_ = (("descriptor", ctypes.c_int32), ("flags", _U32))


class _Writer(ctypes.Structure):
    """``struct writer``."""

    _fields_ = (
        ("buffer", _POINTER),
        ("size", _U64),
        ("used", _U64),
        ("receiver", _POINTER),
        ("output", _POINTER),
        ("at", _U64),
    )


class _Receiver(ctypes.Structure):
    """``struct receiver``."""

    _fields_ = (
        ("writer", _POINTER),
        ("start", _U64),
        ("end", _U64),
        ("at", _U64),
        ("pieces", _POINTER),
        ("outputs", _POINTER),
        ("checksums", _POINTER),
        ("captured", _POINTER),
        ("other_body", _POINTER),
        ("other_limit", _U64),
        ("captured_size", _U64),
        ("other_size", _U64),
        ("crc", _U64),
        ("received", _U64),
        ("algorithm", _U32),
        ("piece", _U32),
        ("decision", _U32),
        ("too_long", _U32),
        ("error", ctypes.c_int32),
    )


class ReceiveLibrary:
    """The compiled part, and the buffer of all bodies, which one thread receives.

    Args:
        path: Its file.

    Raises:
        OSError: It is missing, or was built for another machine.
        AttributeError: It has other functions.
        ValueError: It has another ABI.
    """

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        self._library.receive_abi.restype = ctypes.c_int
        if self._library.receive_abi() != ABI:
            raise ValueError(path)
        self.receive = ctypes.cast(self._library.receive, _POINTER).value or 0
        self.finish = self._library.receiver_finish
        self.finish.argtypes = [_POINTER]
        self._buffer = ctypes.create_string_buffer(BUFFER_BYTES)
        self.writer = _Writer(ctypes.addressof(self._buffer), BUFFER_BYTES)


class CompiledBody:
    """See ``body.Body``.

    Args:
        library: The compiled part.
        curl: The handle of all requests.
        files: Returns the file descriptor of an output file, which is opened on first use.
        in_tmpfs: Whether the files are in a tmpfs.
        huge_pages: Whether it gives huge pages only by advice.

    Raises:
        LookupError: libcurl's handle can't be found.
    """

    __slots__ = (
        "_captured",
        "_checksums",
        "_fetch",
        "_files",
        "_handle",
        "_libcurl",
        "_library",
        "_other_body",
        "_output_flags",
        "_outputs",
        "_pieces",
        "_receiver",
    )

    def __init__(
        self,
        library: ReceiveLibrary,
        curl: pycurl.Curl,
        files: Callable[[int], int],
        *,
        in_tmpfs: bool = False,
        huge_pages: bool = False,
    ) -> None:
        found = libcurl()
        self._handle = found.find_handle(curl) if found is not None else 0
        if found is None or not self._handle:
            raise LookupError
        self._libcurl = found
        self._library = library
        self._files = files
        self._output_flags = _IN_TMPFS * in_tmpfs | _BY_ADVICE * huge_pages
        self._receiver = _Receiver()
        self._other_body = ctypes.create_string_buffer(BODY_LIMIT)

    def start(self, curl: pycurl.Curl, fetch: Fetch, crc: str) -> None:  # noqa: ARG002  # as ``__init__`` had it
        numbers = sorted({piece[3] for piece in fetch.pieces})
        self._fetch = fetch
        self._outputs = (_Output * len(numbers))(
            *(_Output(self._files(number), self._output_flags) for number in numbers)
        )
        pieces = b"".join(
            _PIECE.pack(end, target, numbers.index(number), _flags(role)) for end, role, target, number in fetch.pieces
        )
        self._pieces = ctypes.create_string_buffer(pieces, len(pieces))
        self._checksums = (_U32 * len(fetch.pieces))()
        starts = [fetch.start, *(piece[0] for piece in fetch.pieces)]
        captured = sum(
            end - start for start, (end, role, _, _) in zip(starts, fetch.pieces, strict=False) if role in CAPTURED
        )
        self._captured = ctypes.create_string_buffer(captured)
        self._receiver = _Receiver(
            writer=ctypes.addressof(self._library.writer),
            start=fetch.start,
            end=fetch.end,
            at=fetch.start,
            pieces=ctypes.cast(self._pieces, _POINTER),
            outputs=ctypes.cast(self._outputs, _POINTER),
            checksums=ctypes.cast(self._checksums, _POINTER),
            captured=ctypes.cast(self._captured, _POINTER),
            other_body=ctypes.cast(self._other_body, _POINTER),
            other_limit=BODY_LIMIT,
            received=self.unreported_bytes,
            algorithm=_ALGORITHMS[crc],
        )
        self._libcurl.set_write_function(self._handle, self._library.receive, ctypes.addressof(self._receiver))

    def decide(self, *, accepted: bool) -> None:
        self._receiver.decision = _ACCEPTED if accepted else _REFUSED

    def finish(self) -> None:
        self._library.finish(ctypes.addressof(self._receiver))

    @property
    def unreported_bytes(self) -> int:
        received: int = self._receiver.received
        return received

    @unreported_bytes.setter
    def unreported_bytes(self, value: int) -> None:
        self._receiver.received = value

    @property
    def at(self) -> int:
        at: int = self._receiver.at
        return at

    @property
    def write_error(self) -> int:
        error: int = self._receiver.error
        return error

    @property
    def too_long(self) -> bool:
        return bool(self._receiver.too_long)

    @property
    def other_body(self) -> bytes:
        return self._other_body.raw[: self._receiver.other_size]

    @property
    def crc(self) -> int:
        crc: int = self._receiver.crc
        return crc

    def results(self) -> tuple[list[int], list[bytes]]:
        at, captured = self.at, self._captured.raw
        pieces: list[bytes] = []
        start, taken = self._fetch.start, 0
        for end, role, _, _ in self._fetch.pieces:
            if start >= at:
                break
            length = min(end, at) - start if role in CAPTURED else 0
            pieces.append(captured[taken : taken + length])
            taken += length
            start = end
        return self._checksums[: len(pieces)], pieces


def _flags(role: int) -> int:
    return _CHECKSUMMED if role in CHECKSUMMED else _CAPTURED if role in CAPTURED else 0
