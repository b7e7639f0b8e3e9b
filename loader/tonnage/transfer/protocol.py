"""Messages between the coordinator and its worker processes, over one stream socket each.

Frames are a little-endian u32 length and msgpack. They carry credentials, so they never touch a file, an argument list
or a log.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec

from tonnage.source.error_classification import RequestFailure
from tonnage.source.request_target import Credentials, RequestTarget

if TYPE_CHECKING:
    from collections.abc import Iterator

RECEIVE_BYTES = 1 << 18
"""The most bytes read from the socket at once, on both sides."""


class _Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages; the tag is the class name."""


class Setup(_Message, frozen=True, array_like=True, tag=True):
    """First message to a worker.

    ``targets`` are the objects, ``credential_indexes`` the source of each (an index into ``credentials``), ``files``
    the absolute
    paths of the output files, all of which exist already, ``stall_seconds`` how long a request may stand still.
    """

    targets: list[RequestTarget]
    credential_indexes: list[int]
    credentials: list[Credentials | None]
    files: list[str]
    stall_seconds: int


class Fetch(_Message, frozen=True, array_like=True, tag=True):
    """Fetch ``[start, end)`` of object ``target`` into ``file``.

    ``pieces`` are (end, role, offset in the file or -1), in order. ``fresh_connection`` asks for a connection of its
    own, because what came over the last one was wrong.
    """

    id: int
    target: int
    file: int
    start: int
    end: int
    pieces: list[tuple[int, int, int]]
    fresh_connection: bool = False


class Hash(_Message, frozen=True, array_like=True, tag=True):
    """Compute the SHA-256 of ``prefix`` followed by ``length`` bytes of ``file`` from ``offset`` on."""

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
    """Another way to request an object: its presigned URL was renewed."""

    object: int
    target: RequestTarget


class SetConnections(_Message, frozen=True, array_like=True, tag=True):
    """How many connections to use at once."""

    connections: int


class Result(_Message, frozen=True, array_like=True):
    """What is common to the ends of a fetch: everything before ``end`` is in the file.

    ``checksums`` and ``captured`` belong to the first pieces of the request, the last of them perhaps cut off:
    CRC-32 for DATA (else 0), bytes for HEADER and TAIL (else empty).
    """

    id: int
    end: int
    checksums: list[int]
    captured: list[bytes]


class FetchSucceeded(Result, frozen=True, array_like=True, tag=True):
    """The whole part is there."""


class FetchFailed(Result, frozen=True, array_like=True, tag=True):
    """The part ended early."""

    failure: RequestFailure


class WriteFailed(_Message, frozen=True, array_like=True, tag=True):
    """The output file could not be written: an ``errno``."""

    id: int
    error: int


class Hashed(_Message, frozen=True, array_like=True, tag=True):
    """Answer to ``Hash``; empty digest: the file ended early."""

    id: int
    digest: bytes


class Received(_Message, frozen=True, array_like=True, tag=True):
    """Body bytes that arrived since the last such message."""

    count: int


ToWorker = Setup | Fetch | Hash | UpdateCredentials | UpdateTarget | SetConnections
ToCoordinator = FetchSucceeded | FetchFailed | WriteFailed | Hashed | Received

_LENGTH = struct.Struct("<I")


def encode_frame(message: ToWorker | ToCoordinator) -> bytes:
    """Returns the bytes to send."""
    data = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(data)) + data


class FrameDecoder:
    """Cuts a stream of bytes into the messages of one direction."""

    def __init__(self, kind: object) -> None:
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[ToWorker | ToCoordinator]:
        """Yields the messages that are complete with ``data``."""
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
