"""Which ranges of the output files a load can show to peers. Pure.

What came from the source itself is shown at once, so that others need not wait for the rest of a large tensor: they
verify it by hashes of their own. What came from a peer is shown when its tensor, or its whole object, is verified:
bytes of a peer are never passed on unverified.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from tonnage.cache.peer_ranges import MAX_RANGES
from tonnage.planning.segments import NOT_WRITTEN

if TYPE_CHECKING:
    from collections.abc import Collection

    from tonnage.planning.blueprint import Blueprint
    from tonnage.planning.segments import ByteRange


def add_range(ranges: list[ByteRange], start: int, end: int) -> None:
    """Adds a range to a sorted list of ranges that don't touch, and joins those that do then."""
    first = bisect_left(ranges, start, key=lambda each: each[1])
    last = bisect_right(ranges, end, key=lambda each: each[0])
    if first < last:
        start, end = min(start, ranges[first][0]), max(end, ranges[last - 1][1])
    ranges[first:last] = [(start, end)]


def remove_range(ranges: list[ByteRange], start: int, end: int) -> None:
    """Removes a range from a sorted list of ranges."""
    first = bisect_right(ranges, start, key=lambda each: each[1])
    last = bisect_left(ranges, end, key=lambda each: each[0])
    ranges[first:last] = [
        (begin, stop)
        for each in ranges[first:last]
        for begin, stop in ((each[0], min(each[1], start)), (max(each[0], end), each[1]))
        if begin < stop
    ]


class FinishedRanges:
    """The ranges of a transfer's files that are on disk and as the source has them.

    Args:
        blueprint: Files, segments and placements.
        checked: The objects that are verified as a whole.

    Attributes:
        changed: Whether there is something new since ``take``.
    """

    def __init__(self, blueprint: Blueprint, checked: Collection[int]) -> None:
        self._blueprint = blueprint
        self._checked = checked
        self._placement = {
            (place.object_index, place.tensor_index): place for place in blueprint.placements if place.file_index >= 0
        }
        self._files: dict[int, list[ByteRange]] = {}
        self.changed = False

    def add_tensor(self, index: int, tensor: int) -> None:
        """Adds a tensor that was verified by a hash of its own."""
        source = self._blueprint.objects[index]
        place = self._placement.get((index, tensor))
        if place is None or source.tensors_index is None or not source.has_hashes or index in self._checked:
            return
        self._add(place.file_index, place.offset, place.offset + source.tensors_index.tensors[tensor].length)

    def add_received(self, segment: int, start: int, end: int) -> None:
        """Adds a range that came from the source."""
        for piece in self._blueprint.segments[segment].pieces(start, end):
            if piece.target_offset != NOT_WRITTEN:
                self._add(piece.file_index, piece.target_offset, piece.target_offset + piece.end - piece.start)

    def add_object(self, index: int) -> None:
        """Adds all of an object that was verified as a whole."""
        for segment in self._blueprint.segments:
            if segment.object_index == index:
                self.add_received(segment.index, segment.start, segment.end)

    def discard(self, index: int, start: int, end: int) -> None:
        """Removes a range of an object, because it is fetched again."""
        for segment in self._blueprint.segments:
            if segment.object_index != index or segment.start >= end or segment.end <= start:
                continue
            for piece in segment.pieces(max(start, segment.start), min(end, segment.end)):
                if piece.target_offset != NOT_WRITTEN and piece.file_index in self._files:
                    stop = piece.target_offset + piece.end - piece.start
                    remove_range(self._files[piece.file_index], piece.target_offset, stop)
                    self.changed = True

    def take(self) -> dict[str, list[ByteRange]]:
        """Returns the ranges by path, the longest ones if there are too many."""
        self.changed = False
        files = {self._blueprint.files[file].path: list(ranges) for file, ranges in self._files.items() if ranges}
        if sum(map(len, files.values())) <= MAX_RANGES // 2:
            return files
        lengths = sorted((end - start for ranges in files.values() for start, end in ranges), reverse=True)
        least = lengths[MAX_RANGES // 2]
        return {
            path: kept
            for path, ranges in files.items()
            if (kept := [(start, end) for start, end in ranges if end - start > least])
        }

    def _add(self, file: int, start: int, end: int) -> None:
        if start < end:
            add_range(self._files.setdefault(file, []), start, end)
            self.changed = True
