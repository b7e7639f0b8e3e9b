"""Segments, spans and pieces: which bytes of which object go where. Pure arithmetic on half-open ranges.

A **segment** is a contiguous range of an object that goes into one file of the cache. It consists of **spans**, such as
a tensor's header or a tensor's data. One request fetches a **part**, which is any range within a segment; spans divide
it into **pieces**. All ranges include their start and exclude their end.
"""

from __future__ import annotations

import bisect
import enum
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tonnage.record import Record

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


class SpanRole(enum.IntEnum):
    """The contents of a span."""

    HEADER = 0
    """A tensor's header: sent to the coordinator, and written in the Tensorizer layout."""
    DATA = 1
    """A tensor's data: written, and its CRC-32 is computed."""
    TAIL = 2
    """The bytes after the last tensor: the terminator (sent to the coordinator) and anything after it."""
    OPAQUE = 3
    """Bytes that are not parsed: a companion, or an encrypted tensor's data. Their CRC-32 is computed, too."""


NO_TENSOR = -1
"""``Span.tensor_index`` of a span that belongs to no tensor."""
NOT_WRITTEN = -1
"""``Span.target_offset`` of a span that is not stored."""
FILE_OF_SEGMENT = -1
"""``Span.file_index`` of a span that is stored in the segment's file, as nearly all are."""


class Span(NamedTuple):
    """A range of a segment, from the end of the previous span to ``end``.

    ``tensor_index`` is the tensor's index in its object, or ``NO_TENSOR``; ``target_offset`` is the offset in the
    output file, or ``NOT_WRITTEN``. ``file_index`` is the output file, or ``FILE_OF_SEGMENT``.
    """

    end: int
    role: SpanRole
    tensor_index: int
    target_offset: int
    file_index: int = FILE_OF_SEGMENT


class Piece(NamedTuple):
    """The intersection of a span and a part.

    ``target_offset`` is the offset of its first byte in the output file ``file_index``.
    """

    start: int
    end: int
    role: SpanRole
    tensor_index: int
    target_offset: int
    file_index: int


class Segment(Record, frozen=True):
    """A contiguous range of a source object that goes into one output file, except for spans that name another file.

    Attributes:
        index: Index in the blueprint.
        object_index: Index of the source object.
        file_index: Index of the output file.
        start: First byte in the source object, inclusive.
        end: End in the source object, exclusive.
        spans: Cover ``start`` to ``end`` without gaps.
    """

    index: int
    object_index: int
    file_index: int
    start: int
    end: int
    spans: tuple[Span, ...]
    _ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "_ends", tuple(span.end for span in self.spans))
        if (self._ends[-1] if self._ends else self.start) != self.end:
            raise ValueError(f"spans of segment {self.index} end at {self._ends[-1:]}, not at {self.end}")

    @property
    def size(self) -> int:
        """Bytes to transfer."""
        return self.end - self.start

    def pieces(self, start: int, end: int) -> list[Piece]:
        """Returns the non-empty pieces of the part ``[start, end)``, in order."""
        found: list[Piece] = []
        at = bisect.bisect_right(self._ends, start)
        while start < end:
            span = self.spans[at]
            stop = min(end, span.end)
            begin = self.spans[at - 1].end if at else self.start
            target = span.target_offset if span.target_offset == NOT_WRITTEN else span.target_offset + start - begin
            if stop > start:
                file_index = self.file_index if span.file_index == FILE_OF_SEGMENT else span.file_index
                found.append(Piece(start, stop, span.role, span.tensor_index, target, file_index))
            start = stop
            at += 1
        return found


ByteRange = tuple[int, int]


def subtract_ranges(whole: ByteRange, taken: list[ByteRange]) -> list[ByteRange]:
    """Returns ``whole`` without the ``taken`` ranges, which may overlap and be in any order."""
    left: list[ByteRange] = []
    at = whole[0]
    for start, end in sorted(taken):
        if start >= whole[1]:
            break
        if start >= end:
            continue
        if start > at:
            left.append((at, start))
        at = max(at, end)
    if at < whole[1]:
        left.append((at, whole[1]))
    return left


def grow_ranges(ranges: Collection[ByteRange], units: Iterable[ByteRange]) -> list[ByteRange]:
    """Returns the ranges with the whole of all ``units`` that they overlap, joined where they overlap or touch."""
    overlapped = [(start, end) for start, end in units if any(first < end and start < last for first, last in ranges)]
    joined: list[ByteRange] = []
    for start, end in sorted([*ranges, *overlapped]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def next_part_size(remaining: int, *, connections: int, max_size: int, min_size: int) -> int:
    """Returns the size of the next part in bytes.

    Parts become smaller towards the end of a load, so that all connections finish at about the same time.

    Args:
        remaining: Bytes not yet requested.
        connections: Number of concurrent connections.
        max_size: The regular part size in bytes.
        min_size: Smaller requests have too much overhead.
    """
    return max(min(max_size, remaining // (2 * max(connections, 1))), min(min_size, max_size))
