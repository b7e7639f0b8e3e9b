"""Finds units: those that ranges of files cover, and the order in which nodes fetch them from the source. Pure.

Sets of units are integers with one bit for each unit: with a few thousand units, all decisions are a few operations.

What is fetched from the source is divided into extents: tensors, or parts of large ones. Each node computes for each
extent a number from its own name and the extent's place, and the same for its peers: the extent belongs to the node
with the highest one. So nodes that know each other fetch different extents without asking each other first. Of a fleet
in which most nodes don't know each other, the extents are whole tensors, because bytes of peers are passed on only when
their tensor is verified, and their owners are found by the nodes' places: see ``source_share``.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

from tonnage.transfer.peer_units import SMALL_BYTES, SOURCE_ONLY
from tonnage.transfer.source_share import RING_BITS, Turn, turns

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tonnage.planning.segments import ByteRange
    from tonnage.transfer.peer_units import Unit
    from tonnage.transfer.source_share import SourceShare

EXTENTS_PER_LOAD = 64
"""A long run of units is divided so that a load has about as many extents at least."""
MAX_EXTENT_UNITS = 32
MIN_TENSORS = 16
"""What is verified as a whole is divided if it is more than one in so many of the units."""
_MASK = (1 << 64) - 1


class Extent(NamedTuple):
    """Units in a row that one node fetches from the source.

    Attributes:
        units: The bits of its units.
        seed: A number for its place, the same on all nodes.
        shared: Whether peers can serve it.
    """

    units: int
    seed: int
    shared: bool


class UnitIndex:
    """The units of a load, by file and by extent.

    Args:
        units: All units, in the order of the segments.
        files: Path and size of each output file.

    Attributes:
        for_peers: The units that peers can serve.
        small: The units that only the source has and that are short: mostly headers of tensors.
        between: The units that peers can serve, that are short, and that are next to such: mostly short tensors.
        headers: For each unit, the short one before it that only the source has: mostly its tensor's header; -1: none.
        extents: All units but the short ones.
    """

    def __init__(self, units: Sequence[Unit], files: Sequence[tuple[str, int]]) -> None:
        self.for_peers = self.small = self.between = 0
        by_file: dict[int, list[tuple[int, int, int]]] = {}
        self.headers: list[int] = []
        header = -1
        for number, unit in enumerate(units):
            if unit.file != SOURCE_ONLY:
                self.for_peers |= 1 << number
                by_file.setdefault(unit.file, []).append((unit.offset, unit.offset + unit.size, number))
            elif unit.size < SMALL_BYTES:
                self.small |= 1 << number
                header = number
            self.headers.append(header)
        for number, unit in enumerate(units):
            if unit.file != SOURCE_ONLY and unit.size < SMALL_BYTES:
                near = [at for at in (number - 1, number + 1) if 0 <= at < len(units) and self.small >> at & 1]
                if any(follows(*sorted((units[at], unit))) for at in near):
                    self.between |= 1 << number
        self._files = {files[file][0]: _FileUnits(files[file][1], sorted(found)) for file, found in by_file.items()}
        self.extents = _extents(units, max(1, min(MAX_EXTENT_UNITS, len(units) // EXTENTS_PER_LOAD)))
        self._tensors = _extents(units, max(MAX_EXTENT_UNITS, len(units) // MIN_TENSORS))
        self._points = _points(self._tensors, units)
        self._scores: dict[str, list[int]] = {}

    def covered(self, ranges: Mapping[str, tuple[int, Sequence[ByteRange]]]) -> int:
        """Returns the units that ranges of files have. Files of another size than expected have none.

        Args:
            ranges: By path: the file's size, and ranges in order.
        """
        found = 0
        for path, (size, file_ranges) in ranges.items():
            file = self._files.get(path)
            if file is not None and file.size == size:
                found |= file.covered(file_ranges)
        return found

    def source_order(self, node: str, peers: Collection[str]) -> list[Extent]:
        """Returns the order in which a node fetches extents from the source.

        Its own come first. Of those that belong to others, it is to help first with those for which it has the second
        highest number, and with those that their node comes to last. What peers can't serve comes at the end.

        Args:
            node: The node.
            peers: The peers that it knows.
        """
        own = self._scores_of(node)
        others = [self._scores_of(peer) for peer in sorted(peers) if peer != node]

        def place(at: int) -> tuple[bool, int, int]:
            higher = [scores[at] for scores in others if scores[at] > own[at]]
            return not self.extents[at].shared, len(higher), max(higher) if higher else -own[at]

        return [self.extents[at] for at in sorted(range(len(self.extents)), key=place)]

    def turns(self, node: str, share: SourceShare) -> list[tuple[Turn, Extent]]:
        """Returns the extents in the order in which a node of a large fleet fetches them, each with its turn.

        What peers can't serve comes last; each node fetches it itself.

        Args:
            node: The node.
            share: Its place, and how many nodes load.
        """
        found = zip(turns(share, node, self._points), self._points, self._tensors, strict=True)
        order = sorted(found, key=lambda each: (not each[2].shared, each[0].distance, each[1]))
        return [(turn if extent.shared else Turn(0, 0.0), extent) for turn, _, extent in order]

    def _scores_of(self, node: str) -> list[int]:
        scores = self._scores.get(node)
        if scores is None:
            seed = _seed(node)
            scores = self._scores[node] = [_mix(seed ^ extent.seed) for extent in self.extents]
        return scores


class _FileUnits:
    """The units of one file, in the order of their offsets."""

    def __init__(self, size: int, units: Sequence[tuple[int, int, int]]) -> None:
        self.size = size
        self._starts = [start for start, _, _ in units]
        self._ends = [end for _, end, _ in units]
        self._numbers = [number for _, _, number in units]
        self._all = sum(1 << number for number in self._numbers)
        self._in_order = all(one < two for one, two in zip(self._numbers, self._numbers[1:], strict=False))

    def covered(self, ranges: Sequence[ByteRange]) -> int:
        found = 0
        for start, end in ranges:
            first = bisect_left(self._starts, start)
            last = bisect_right(self._ends, end) - 1
            if last < first:
                continue
            if self._in_order:
                low, high = self._numbers[first], self._numbers[last]
                found |= ((1 << (high - low + 1)) - 1) << low
            else:
                found |= sum(1 << number for number in self._numbers[first : last + 1])
        return found & self._all


def follows(before: Unit, unit: Unit) -> bool:
    """Returns whether a unit begins where another one ends, so that one request can have both."""
    return (before.segment, before.end) == (unit.segment, unit.start)


def with_short_around(units: Sequence[Unit], number: int, *, short: int, wanted: int) -> tuple[int, int]:
    """Returns the first and the last of the units that one request is to have with a unit: short ones next to it.

    Args:
        units: All units.
        number: The unit. If it is short itself, those that follow come, too.
        short: The short units.
        wanted: Those that are to be fetched.
    """

    def last_of(step: int) -> int:
        at, size = number, 0
        while 0 <= (other := at + step) < len(units) and (short & wanted) >> other & 1:
            size += units[other].size
            if size >= SMALL_BYTES or not follows(*sorted((units[at], units[other]))):
                break
            at = other
        return at

    return last_of(-1), last_of(1) if short >> number & 1 else number


def first_from(candidates: int, start: int) -> int:
    """Returns the first candidate from a place on, and from the beginning after the end."""
    later = candidates >> start
    if later:
        return start + (later & -later).bit_length() - 1
    return (candidates & -candidates).bit_length() - 1


def _points(extents: Sequence[Extent], units: Sequence[Unit]) -> list[int]:
    """Returns a point of the ring for each extent: in the order of their seeds, as far apart as they are large."""
    sizes = [sum(units[number].size for number in bits_of(extent.units)) for extent in extents]
    points = [0] * len(extents)
    total, before = sum(sizes), 0
    for at in sorted(range(len(extents)), key=lambda each: extents[each].seed):
        points[at] = (before << RING_BITS) // total
        before += sizes[at]
    return points


def bits_of(units: int) -> list[int]:
    """Returns the numbers of the units in a set."""
    found = []
    while units:
        found.append((units & -units).bit_length() - 1)
        units &= units - 1
    return found


def _extents(units: Sequence[Unit], longest: int) -> list[Extent]:
    extents: list[Extent] = []
    bits = length = 0
    first: Unit | None = None
    before: Unit | None = None

    def close() -> None:
        if first is not None:
            seed = _seed(f"{first.segment}/{first.start}")
            extents.append(Extent(bits, seed, shared=first.file != SOURCE_ONLY))

    for number, unit in enumerate(units):
        if unit.file == SOURCE_ONLY and unit.size < SMALL_BYTES:
            continue
        follows = before is not None and (before.segment, before.end, before.file) == (
            unit.segment,
            unit.start,
            unit.file,
        )
        if not follows or length == longest:
            close()
            first, bits, length = unit, 0, 0
        bits |= 1 << number
        length += 1
        before = unit
    close()
    return extents


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _mix(value: int) -> int:
    """Returns a number that is as good as random for each value."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
