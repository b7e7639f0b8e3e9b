"""Divides what is to be fetched into units: what a load takes from one peer, or from the source, at a time. Pure.

A peer serves files of the entry, so a unit for peers is a range of an object that is one range of one file. What the
files don't have, such as the headers between tensors with their hashes, and what could not be verified without trusting
the peer, comes from the source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tonnage.planning.segments import NOT_WRITTEN, SpanRole, subtract_ranges

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from tonnage.planning.segments import ByteRange, Piece, Segment

SOURCE_ONLY = -1
"""``Unit.file`` of a unit that no peer is asked for."""
MIN_UNIT_BYTES = 1 << 20
UNITS_PER_LOAD = 256
"""A small load is divided into about so many units, so that nodes can exchange them."""
MAX_UNITS = 8192
"""A large load has about as many at most; its units are larger than a part."""
SMALL_BYTES = 64 << 10
"""A shorter range that lies between headers is fetched from the source with them, unless peers have the headers."""


class Unit(NamedTuple):
    """Bytes ``start`` to ``end`` of a segment's object, which are in ``file`` from ``offset`` on."""

    segment: int
    start: int
    end: int
    file: int = SOURCE_ONLY
    offset: int = 0

    @property
    def size(self) -> int:
        return self.end - self.start


def unit_size(size: int, part_size: int) -> int:
    """Returns the size of the units of a load in bytes.

    Args:
        size: Bytes to fetch.
        part_size: The largest part.
    """
    small = min(part_size, max(MIN_UNIT_BYTES, size // UNITS_PER_LOAD))
    return max(small, -(-size // MAX_UNITS))


def make_units(
    segments: Sequence[Segment],
    done: Mapping[int, list[ByteRange]],
    *,
    believable: Collection[int],
    size: int,
) -> list[Unit]:
    """Returns the units of everything that is to be fetched, in the order of the segments.

    Args:
        segments: All segments.
        done: Ranges that are already on disk, by segment.
        believable: The objects whose bytes are verified by hashes that come from their source.
        size: Maximum size of a unit in bytes.
    """
    units: list[Unit] = []
    for segment in segments:
        for start, end in subtract_ranges((segment.start, segment.end), done.get(segment.index, [])):
            pieces = segment.pieces(start, end)
            may_ask = segment.object_index in believable
            for asks, run in _runs(pieces, may_ask=may_ask):
                units += _cut(segment.index, run, size, asks=asks)
    return units


def _is_in_file(piece: Piece) -> bool:
    return piece.target_offset != NOT_WRITTEN and piece.role in {SpanRole.DATA, SpanRole.OPAQUE}


def _runs(pieces: Sequence[Piece], *, may_ask: bool) -> list[tuple[bool, list[Piece]]]:
    """Returns the pieces in runs: those of one range of a file, for peers, and what lies between such runs."""
    runs: list[tuple[bool, list[Piece]]] = []
    for piece in pieces:
        asks = may_ask and _is_in_file(piece)
        last = runs[-1] if runs else None
        if last is not None and last[0] == asks and (not asks or _follows(last[1][-1], piece)):
            last[1].append(piece)
        else:
            runs.append((asks, [piece]))
    return runs


def _follows(before: Piece, piece: Piece) -> bool:
    return (
        before.file_index == piece.file_index
        and before.target_offset + before.end - before.start == piece.target_offset
        and before.end == piece.start
    )


def _cut(segment: int, run: list[Piece], size: int, *, asks: bool) -> Iterator[Unit]:
    start, end = run[0].start, run[-1].end
    count = max(1, -(-(end - start) // size))
    each = -(-(end - start) // count)
    for at in range(start, end, each):
        stop = min(at + each, end)
        if asks:
            yield Unit(segment, at, stop, run[0].file_index, run[0].target_offset + at - start)
        else:
            yield Unit(segment, at, stop)
