"""The ranges not yet assigned, and which worker gets the next part. Pure: no clock, no socket.

A segment has one owner, because several writers of one tmpfs file slow each other down. A worker takes parts of its own
segments first, then of the next segment without an owner; if there is none left, it helps with the segment that has the
most bytes left. While readers wait for files, few segments are open at a time, so that files are complete one by one
instead of all near the end: a worker without one of its own helps with the first that is open.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple

from tonnage.planning.segments import next_part_size, subtract_ranges
from tonnage.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.planning.segments import ByteRange, Segment


class Part(Record, frozen=True):
    """A sub-range of a segment to fetch.

    Attributes:
        attempt: Consecutive failures without a byte of progress.
        fresh_connection: Whether to use a new connection, because the bytes from the last one were corrupt.
        peer: The node that is asked; empty: the source.
        unit: The number of its unit, if a peer is asked.
        file: The file that has it there.
        shift: What to add to an offset in the object for the one in the file.
    """

    segment: int
    start: int
    end: int
    attempt: int = 0
    fresh_connection: bool = False
    peer: str = ""
    unit: int = -1
    file: int = -1
    shift: int = 0


class Delayed(NamedTuple):
    """A part that is not taken before a time. No two have the same ``order``."""

    when: float
    order: int
    part: Part


class PartQueue:
    """The ranges of a load that are not assigned to a worker.

    Args:
        segments: All segments.
        done: Ranges that are already on disk, by segment.
        max_part_size: Largest part size in bytes, used while enough bytes remain. Can be changed at any time.
        min_part_size: Smallest part size in bytes.

    Attributes:
        remaining: Number of bytes that are not assigned.
        max_open: Maximum number of segments that have an owner and bytes left; None: no limit. Can be changed at any
            time; segments that are open stay open.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        done: Mapping[int, list[ByteRange]],
        *,
        max_part_size: int,
        min_part_size: int,
    ) -> None:
        self._unassigned = {
            segment.index: left
            for segment in segments
            if (left := subtract_ranges((segment.start, segment.end), done.get(segment.index, [])))
        }
        self.max_part_size = max_part_size
        self._min_part_size = min_part_size
        self.max_open: int | None = None
        self._owner: dict[int, int] = {}
        self._delayed: list[Delayed] = []
        self._order = 0
        self.remaining = sum(end - start for left in self._unassigned.values() for start, end in left)

    def take(self, worker: int, *, slots: int, now: float, max_size: int = 1 << 62) -> Part | None:
        """Returns the next part for a worker, or None if there is none now.

        Args:
            worker: The worker's number.
            slots: Total connections of all workers.
            now: Current time, on the clock of ``requeue``'s ``not_before``.
            max_size: Maximum size in bytes. A requeued part may be larger.
        """
        if self._delayed and self._delayed[0].when <= now:
            part = heapq.heappop(self._delayed).part
            self.remaining -= part.end - part.start
            return part
        segment = self._choose(worker)
        if segment is None:
            return None
        size = min(
            max_size,
            next_part_size(
                self.remaining, connections=slots, max_size=self.max_part_size, min_size=self._min_part_size
            ),
        )
        left = self._unassigned[segment]
        start, end = left[0]
        if end - start <= size + min(size, self._min_part_size) // 2:
            left.pop(0)
            if not left:
                del self._unassigned[segment]
        else:
            end = start + size
            left[0] = (end, left[0][1])
        self.remaining -= end - start
        return Part(segment, start, end)

    def requeue(self, part: Part, *, not_before: float) -> None:
        """Adds a part that ``take`` returns at ``not_before`` or later."""
        self._order += 1
        self.remaining += part.end - part.start
        heapq.heappush(self._delayed, Delayed(not_before, self._order, part))

    def finished(self, part: Part, *, end: int, now: float) -> None:
        """A part has ended. Nothing is kept of it here."""

    def next_due(self) -> float | None:
        """Returns the time at which the next requeued part is due; None if there is none."""
        return self._delayed[0].when if self._delayed else None

    def _choose(self, worker: int) -> int | None:
        unowned: int | None = None
        largest: int | None = None
        first: int | None = None
        most = open_segments = 0
        for segment, left in self._unassigned.items():
            owner = self._owner.get(segment)
            if owner == worker:
                return segment
            if owner is None and unowned is None:
                unowned = segment
            if owner is not None:
                open_segments += 1
                first = segment if first is None else first
            size = sum(end - start for start, end in left)
            if size > most:
                most, largest = size, segment
        if self.max_open is not None and open_segments >= self.max_open:
            return first
        if unowned is not None:
            self._owner[unowned] = worker
            return unowned
        return largest
