"""The headers file of an entry: what its files lack of the objects that it was made from.

It has the pins of the revision, and of each object its beginning, the headers of its tensors and its end, as the source
has them, and the CRC-32 of an object that holds no hashes. A node that knows the file's SHA-256 from the object's
status can take it from any peer, and needs nothing of the source but the proof of its access. It depends on the objects
only, neither on the layout nor on the node.
"""

from __future__ import annotations

import hashlib
import zlib
from bisect import bisect_left
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec

from tonnage.cache.peer_ranges import EntrySource
from tonnage.contract.plan import DECODE_ERRORS
from tonnage.errors import CacheDamaged
from tonnage.planning.segments import SpanRole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.planning.blueprint import SourceObject
    from tonnage.planning.segments import Segment
    from tonnage.source.resolve import ResolvedObject, ResolvedRevision
    from tonnage.transfer.source_headers import CollectedRange, HeaderCollector

VERSION = 1
MAX_BYTES = 256 << 20
_MAX_OBJECTS = 100_000


class ObjectHeaders(msgspec.Struct, frozen=True, array_like=True):
    """What is needed of one object.

    Attributes:
        source: Its pin.
        head: Its first bytes, up to the end of its index or header.
        ranges: Start and bytes of each header, and of what follows the last tensor.
        crc32: CRC-32 of the whole object; None if its tensors have hashes.
    """

    source: EntrySource
    head: bytes
    ranges: list[tuple[int, bytes]]
    crc32: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)] | None = None


class HeadersFile(msgspec.Struct, frozen=True, array_like=True):
    """The whole file. ``pins`` are those of the revision, of all ranks, in the order of the sources."""

    version: int
    pins: Annotated[list[EntrySource], msgspec.Meta(max_length=_MAX_OBJECTS)]
    objects: Annotated[list[ObjectHeaders], msgspec.Meta(max_length=_MAX_OBJECTS)]


class KnownHeaders(NamedTuple):
    """A headers file for the objects of one load, by their index."""

    heads: Mapping[int, bytes]
    ranges: Mapping[int, Sequence[tuple[int, bytes]]]
    crc32s: Mapping[int, int]

    def content(self, index: int, start: int, end: int) -> bytes | None:
        """Returns bytes of an object, cut at the end of its index or of a header; None if they are not known."""
        head = self.heads.get(index, b"")
        if start < len(head):
            return head[start:end]
        for at, content in self.ranges.get(index, ()):
            if at <= start < at + len(content):
                return content[start - at : end - at]
        return None


def build_headers(
    resolved: ResolvedRevision,
    items: Sequence[ResolvedObject],
    objects: Sequence[SourceObject],
    segments: Sequence[Segment],
    collected: HeaderCollector,
) -> bytes | None:
    """Returns the headers file of a load of all objects; None if something for it was not received.

    Of objects that hold hashes the headers are enough, so that it can be made before the load has ended.

    Args:
        resolved: The revision.
        items: The objects.
        objects: The same, with their indexes.
        segments: The segments of the objects.
        collected: What the transfer has received of them.
    """
    found = []
    for index, (item, source) in enumerate(zip(items, objects, strict=True)):
        spans = [span for segment in segments if segment.object_index == index for span in header_spans(segment)]
        made = _object_headers(item, source, sorted(spans), collected.pieces(index))
        if made is None:
            return None
        found.append(made)
    pins = [
        EntrySource(place=each.place, key=pin.key, size=pin.size, etag=pin.etag, version_id=pin.version_id)
        for each in resolved.sources
        for pin in each.objects
    ]
    data = msgspec.msgpack.encode(HeadersFile(VERSION, pins, found))
    return data if len(data) <= MAX_BYTES else None


def header_spans(segment: Segment) -> list[tuple[int, int]]:
    """Returns start and end of the headers in a segment, and of what follows the last tensor."""
    starts = (segment.start, *(span.end for span in segment.spans))
    return [
        (start, span.end)
        for start, span in zip(starts, segment.spans, strict=False)
        if span.role in {SpanRole.HEADER, SpanRole.TAIL} and start < span.end
    ]


def _object_headers(
    item: ResolvedObject,
    source: SourceObject,
    spans: Sequence[tuple[int, int]],
    pieces: Sequence[tuple[int, CollectedRange]],
) -> ObjectHeaders | None:
    starts = [start for start, _ in pieces]
    ranges: list[tuple[int, bytes]] = []
    for start, end in spans:
        content = b""
        for at, piece in pieces[bisect_left(starts, start) : bisect_left(starts, end)]:
            content += piece.content if piece.content is not None and at == start + len(content) else b""
        if len(content) != end - start:
            return None
        ranges.append((start, content))
    crc32 = None if source.has_hashes else _whole_crc32(source, pieces)
    if crc32 is None and not source.has_hashes:
        return None
    return ObjectHeaders(entry_source(item), source.head, ranges, crc32)


def _whole_crc32(source: SourceObject, pieces: Sequence[tuple[int, CollectedRange]]) -> int | None:
    """Returns the CRC-32 of an object; None if something of it was not received."""
    at = pieces[0][0] if pieces else len(source.head)
    crc32 = zlib.crc32(source.head[:at])
    for start, piece in pieces:
        if start != at:
            return None
        at = piece.end
        crc32 = _combine(crc32, piece.crc32, piece.end - start)
    return crc32 if at == source.size else None


def _combine(first: int, second: int, length: int) -> int:
    from isal import isal_zlib

    value: int = isal_zlib.crc32_combine(first, second, length)
    return value


def entry_source(item: ResolvedObject) -> EntrySource:
    """Returns what an entry shows of an object."""
    pin = item.pin
    return EntrySource(place=item.place, key=pin.key, size=pin.size, etag=pin.etag, version_id=pin.version_id)


def headers_digest(data: bytes) -> str:
    """Returns the SHA-256 of a headers file, in hex."""
    return hashlib.sha256(data).hexdigest()


def decode_headers(data: bytes) -> HeadersFile:
    """Parses a headers file whose SHA-256 is known to be right.

    Raises:
        CacheDamaged: It is none, or of another version.
    """
    try:
        found = msgspec.msgpack.decode(data, type=HeadersFile)
    except DECODE_ERRORS as error:
        raise CacheDamaged(f"The headers file can't be read: {error}.") from error
    if found.version != VERSION:
        raise CacheDamaged(f"The headers file has version {found.version}, not {VERSION}.")
    return found


def known_headers(file: HeadersFile, items: Sequence[ResolvedObject]) -> KnownHeaders:
    """Returns what a headers file has of the objects of a load."""
    by_source = {(each.source.place, each.source.key): each for each in file.objects}
    heads: dict[int, bytes] = {}
    ranges: dict[int, Sequence[tuple[int, bytes]]] = {}
    crc32s: dict[int, int] = {}
    for index, item in enumerate(items):
        found = by_source.get((item.place, item.pin.key))
        if found is None or found.source != entry_source(item):
            continue
        heads[index], ranges[index] = found.head, found.ranges
        if found.crc32 is not None:
            crc32s[index] = found.crc32
    return KnownHeaders(heads, ranges, crc32s)
