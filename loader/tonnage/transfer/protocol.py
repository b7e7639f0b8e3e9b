"""Messages between the coordinator and its worker processes, over one stream socket per worker.

A frame is a little-endian u32 length and msgpack. Messages contain credentials: never write them to a file, an argument
list or a log.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec

from tonnage.source.request_failure import RequestFailure
from tonnage.source.request_target import Credentials, RequestTarget

if TYPE_CHECKING:
    from collections.abc import Iterator

RECEIVE_BYTES = 1 << 18
"""Maximum bytes per read from the socket, on both ends."""


class _Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages; the tag is the class name."""


class Setup(_Message, frozen=True, array_like=True, tag=True):
    """First message to a worker.

    Attributes:
        targets: The objects.
        credential_indexes: For each object, the index of its credentials.
        credentials: The credentials of each source.
        files: Absolute paths of the output files, which exist.
        stall_seconds: How long a transfer may stay below ``STALL_BYTES`` a second before it is aborted.
        in_tmpfs: Whether the files are in a tmpfs.
        huge_pages: Whether it gives huge pages only by advice.
        crcs: For each object, the CRC to compute of what is received in addition to CRC-32; empty: none.
        receive_library: Path of the compiled part that receives bodies; empty: Python does.
    """

    targets: list[RequestTarget]
    credential_indexes: list[int]
    credentials: list[Credentials | None]
    files: list[str]
    stall_seconds: int
    in_tmpfs: bool = False
    huge_pages: bool = False
    crcs: list[str] = []
    receive_library: str = ""


class Fetch(_Message, frozen=True, array_like=True, tag=True):
    """Fetch ``[start, end)`` of object ``target``.

    ``pieces`` are (end, role, offset in the file or -1, file), in order. ``fresh_connection`` requests a new connection
    that is not reused, because the bytes from the last one were corrupt. If ``peer`` is set, it is asked in place of
    the object's target, for the same bytes of its file: offsets there are greater by ``shift``. It may take
    ``seconds``.
    """

    id: int
    target: int
    start: int
    end: int
    pieces: list[tuple[int, int, int, int]]
    fresh_connection: bool = False
    peer: RequestTarget | None = None
    shift: int = 0
    seconds: float = 0.0


class Hash(_Message, frozen=True, array_like=True, tag=True):
    """Compute the SHA-256 of ``prefix`` followed by ``length`` bytes of ``file`` from ``offset``."""

    id: int
    file: int
    offset: int
    length: int
    prefix: bytes


class UpdateCredentials(_Message, frozen=True, array_like=True, tag=True):
    """New credentials for a source."""

    source: int
    credentials: Credentials | None


class UpdateTarget(_Message, frozen=True, array_like=True, tag=True):
    """A new request target for an object, because its presigned URL was refreshed."""

    object: int
    target: RequestTarget


class SetConnections(_Message, frozen=True, array_like=True, tag=True):
    """Sets how many connections the worker uses at a time, and how many it keeps open; 0: as many."""

    connections: int
    kept: int = 0


class Result(_Message, frozen=True, array_like=True):
    """The result of a fetch: all bytes before ``end`` are in the file.

    ``checksums`` and ``captured`` are those of the first pieces of the request; the last of them may be incomplete.
    CRC-32 for DATA and OPAQUE (otherwise 0), bytes for HEADER and TAIL (otherwise empty). ``crc`` is the object's CRC
    of ``Setup.crcs`` over all bytes before ``end``.
    """

    id: int
    end: int
    checksums: list[int]
    captured: list[bytes]
    crc: int


class FetchSucceeded(Result, frozen=True, array_like=True, tag=True):
    """The part is complete."""


class FetchFailed(Result, frozen=True, array_like=True, tag=True):
    """The part ended early. ``status`` is the HTTP status; 0 if there was no response."""

    failure: RequestFailure
    status: int = 0


class WriteFailed(_Message, frozen=True, array_like=True, tag=True):
    """The output file could not be written; ``error`` is an ``errno``."""

    id: int
    error: int


class Hashed(_Message, frozen=True, array_like=True, tag=True):
    """Response to ``Hash``; ``digest`` is empty if the file is too short."""

    id: int
    digest: bytes


class Received(_Message, frozen=True, array_like=True, tag=True):
    """Number of body bytes received since the last such message."""

    count: int


ToWorker = Setup | Fetch | Hash | UpdateCredentials | UpdateTarget | SetConnections
ToCoordinator = FetchSucceeded | FetchFailed | WriteFailed | Hashed | Received

_LENGTH = struct.Struct("<I")


def encode_frame(message: ToWorker | ToCoordinator) -> bytes:
    data = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(data)) + data


class FrameDecoder:
    """Splits a stream of bytes into the messages of one direction."""

    def __init__(self, kind: object) -> None:
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[ToWorker | ToCoordinator]:
        """Yields the messages that ``data`` completes."""
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= 4:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if len(buffer) - at - 4 < length:
                break
            yield self._decode(bytes(buffer[at + 4 : at + 4 + length]))
            at += 4 + length
        del buffer[:at]
