"""Segments, spans and pieces: which bytes of which object go where. Pure arithmetic on half-open ranges.

A **segment** is one contiguous run of an object's bytes that belongs into one file of the cache. It consists of
**spans**: a tensor's header, a tensor's data, and so on. What is fetched at a time is a **part**, any sub-range of a
segment; the spans cut it into **pieces**. All ranges here include their start and exclude their end.
"""

from __future__ import annotations

import bisect
import enum
from dataclasses import dataclass, field
from typing import NamedTuple


class SpanRole(enum.IntEnum):
    """What a span of an object's bytes is."""

    HEADER = 0
    """A tensor's header: brought to the coordinator, and in the Tensorizer layout written too."""
    DATA = 1
    """A tensor's data: written, and its CRC-32 computed."""
    TAIL = 2
    """What follows the last tensor: the terminator (brought to the coordinator) and anything behind it."""
    OPAQUE = 3
    """Bytes that nobody here understands: a companion, or an encrypted tensor's data."""


NO_TENSOR = -1
"""``Span.tensor_index`` of a span that belongs to no tensor."""
NOT_WRITTEN = -1
"""The target of spans that aren't stored."""


class Span(NamedTuple):
    """One stretch of a segment, from the end of the span before it to ``end``.

    ``tensor_index`` is the index in its file (-1: none); ``target_offset`` the offset in the output file, or
    ``NOT_WRITTEN``.
    """

    end: int
    role: SpanRole
    tensor_index: int
    target_offset: int


class Piece(NamedTuple):
    """The part of a span that lies in a part: source range, span's role and tensor, and where its first byte goes."""

    start: int
    end: int
    role: SpanRole
    tensor_index: int
    target_offset: int


@dataclass(frozen=True, slots=True)
class Segment:
    """One contiguous source range that goes into one output file.

    Attributes:
        index: Position in the blueprint.
        object_index: Index of the source object.
        file_index: Index of the output file.
        start: First byte in the source object, inclusive.
        end: End in the source object, exclusive.
        spans: Without gaps, from ``start`` to ``end``.
    """

    index: int
    object_index: int
    file_index: int
    start: int
    end: int
    spans: tuple[Span, ...]
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", tuple(span.end for span in self.spans))
        if (self._ends[-1] if self._ends else self.start) != self.end:
            raise ValueError(f"spans of segment {self.index} end at {self._ends[-1:]}, not at {self.end}")

    @property
    def size(self) -> int:
        """Bytes to fetch."""
        return self.end - self.start

    def pieces(self, start: int, end: int) -> list[Piece]:
        """Returns what a part ``[start, end)`` of this segment consists of, in order, without empty pieces."""
        found: list[Piece] = []
        at = bisect.bisect_right(self._ends, start)
        while start < end:
            span = self.spans[at]
            stop = min(end, span.end)
            begin = self.spans[at - 1].end if at else self.start
            target = span.target_offset if span.target_offset == NOT_WRITTEN else span.target_offset + start - begin
            if stop > start:
                found.append(Piece(start, stop, span.role, span.tensor_index, target))
            start = stop
            at += 1
        return found


ByteRange = tuple[int, int]


def subtract_ranges(whole: ByteRange, taken: list[ByteRange]) -> list[ByteRange]:
    """Returns what is left of ``whole`` without the ``taken`` ranges, which may overlap and be in any order."""
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


def next_part_size(remaining: int, *, connections: int, max_size: int, min_size: int) -> int:
    """Returns how much to ask for next, in bytes.

    Parts shrink towards the end of a load, so that the last ones don't leave one connection working alone.

    Args:
        remaining: Bytes nobody has asked for yet.
        connections: Connections that ask at the same time.
        max_size: The ordinary part size.
        min_size: Below this a request costs more than it moves.
    """
    return max(min(max_size, remaining // (2 * max(connections, 1))), min(min_size, max_size))
