"""The ranges not yet assigned, and which worker gets the next part. Pure: no clock, no socket.

Several writers of one tmpfs file slow each other down. So a segment has one owner, and owners spread over the files: a
worker takes parts of its own segment first, then of a segment without an owner in the file that fewest workers fill; if
there is none left, it helps with the segment that has the most bytes left. While readers wait for files, few files are
open at a time, and the first ones have as many workers as can fill them, so that files are complete one by one instead
of all near the end: a worker without a segment of its own helps with the first that is open.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

from tonnage.planning.segments import next_part_size, subtract_ranges
from tonnage.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.planning.segments import ByteRange, Segment


FILE_WRITERS = 4
"""How many workers fill one file of a tmpfs as fast as more would (``loader/native/receive.c``)."""


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
        max_open: Maximum number of files that are begun and have bytes left; None: no limit. Can be changed at any
            time; files that are open stay open.
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
        self._file = {segment.index: segment.file_index for segment in segments}
        self._left = Counter(self._file[segment] for segment in self._unassigned)
        self._unowned: dict[int, deque[int]] = {}
        for segment in self._unassigned:
            self._unowned.setdefault(self._file[segment], deque()).append(segment)
        self.max_part_size = max_part_size
        self._min_part_size = min_part_size
        self.max_open: int | None = None
        self._owned: dict[int, int] = {}
        self._open: set[int] = set()
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
                self._forget(segment)
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

    def _forget(self, segment: int) -> None:
        """Drops a segment without unassigned bytes."""
        del self._unassigned[segment]
        file = self._file[segment]
        if segment in self._unowned[file]:
            self._unowned[file].remove(segment)
        self._left[file] -= 1
        if not self._left[file]:
            self._open.discard(file)

    def _choose(self, worker: int) -> int | None:
        own = self._owned.get(worker)
        if own in self._unassigned:
            return own
        owned = [segment for segment in self._owned.values() if segment in self._unassigned]
        file = self._choose_file(Counter(self._file[segment] for segment in owned))
        if file is not None:
            self._owned[worker] = segment = self._unowned[file].popleft()
            self._open.add(file)
            return segment
        if owned and self.max_open is not None:
            return min(owned)
        return max(self._unassigned, key=self._count_unassigned, default=None)

    def _choose_file(self, owners: Counter[int]) -> int | None:
        """Returns the file of which a segment gets an owner next, by the owners in each file; None if there is none."""
        with_unowned = [file for file, segments in self._unowned.items() if segments]
        if self.max_open is None:
            return min(with_unowned, key=lambda file: owners[file], default=None)
        has_room = len(self._open) < self.max_open
        for file in with_unowned:
            if owners[file] < FILE_WRITERS and (has_room or file in self._open):
                return file
        return None

    def _count_unassigned(self, segment: int) -> int:
        return sum(end - start for start, end in self._unassigned[segment])
