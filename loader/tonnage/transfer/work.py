"""What is still to fetch, and who fetches it next. Pure: no clock, no socket.

A segment has one owner, since several writers of one tmpfs file hinder each other: a worker takes parts of its own
segment first, then opens the next untouched one, and only when there is none left helps with the fullest.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tonnage.planning.segments import next_part_size, subtract

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.planning.segments import Range, Segment


@dataclass(frozen=True, slots=True)
class Part:
    """A sub-range of a segment to fetch.

    Attributes:
        attempt: How often in a row it failed without a byte of progress.
        fresh: Whether to use a new connection, because what came before was wrong.
    """

    segment: int
    start: int
    end: int
    attempt: int = 0
    fresh: bool = False


@dataclass(order=True, slots=True)
class _Delayed:
    when: float
    order: int
    part: Part = field(compare=False)


class WorkQueue:
    """The parts of a load that nobody fetches at the moment. ``largest`` may be changed as it goes.

    Args:
        segments: All segments.
        done: Ranges that are on disk already, by segment.
        largest: Ordinary part size in bytes.
        smallest: Smallest part size in bytes.
    """

    def __init__(
        self, segments: Sequence[Segment], done: Mapping[int, list[Range]], *, largest: int, smallest: int
    ) -> None:
        self._left = {
            segment.index: left
            for segment in segments
            if (left := subtract((segment.start, segment.end), done.get(segment.index, [])))
        }
        self.largest = largest
        self._smallest = smallest
        self._owner: dict[int, int] = {}
        self._delayed: list[_Delayed] = []
        self._order = 0
        self.remaining = sum(end - start for left in self._left.values() for start, end in left)

    def take(self, worker: int, *, slots: int, now: float, most: int = 1 << 62) -> Part | None:
        """Returns the next part for a worker, or None if there is none for it now.

        Args:
            worker: Who asks.
            slots: Connections of all workers together.
            now: The time on the clock that ``delay`` was told.
            most: The most bytes wanted; a part that comes back after a failure may be larger.
        """
        if self._delayed and self._delayed[0].when <= now:
            part = heapq.heappop(self._delayed).part
            self.remaining -= part.end - part.start
            return part
        segment = self._choose(worker)
        if segment is None:
            return None
        size = min(most, next_part_size(self.remaining, slots=slots, largest=self.largest, smallest=self._smallest))
        left = self._left[segment]
        start, end = left[0]
        if end - start <= size + min(size, self._smallest) // 2:
            left.pop(0)
            if not left:
                del self._left[segment]
        else:
            end = start + size
            left[0] = (end, left[0][1])
        self.remaining -= end - start
        return Part(segment, start, end)

    def delay(self, part: Part, *, until: float) -> None:
        """Puts a part back, to be fetched at ``until`` or later."""
        self._order += 1
        self.remaining += part.end - part.start
        heapq.heappush(self._delayed, _Delayed(until, self._order, part))

    def next_time(self) -> float | None:
        """When the next delayed part is due; None if none waits."""
        return self._delayed[0].when if self._delayed else None

    def _choose(self, worker: int) -> int | None:
        untouched: int | None = None
        fullest: int | None = None
        most = 0
        for segment, left in self._left.items():
            owner = self._owner.get(segment)
            if owner == worker:
                return segment
            if owner is None and untouched is None:
                untouched = segment
            size = sum(end - start for start, end in left)
            if size > most:
                most, fullest = size, segment
        if untouched is not None:
            self._owner[untouched] = worker
            return untouched
        return fullest
