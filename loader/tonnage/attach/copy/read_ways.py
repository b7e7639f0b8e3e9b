"""Decides how much of a copy is read with ``read`` and how much from mappings, by how fast each is.

Which way is faster depends on the machine, on the pages' size and on whether they were read before, and that changes
during a copy. The first ``read`` of a page in shared memory moves it to another of the kernel's lists under a global
lock, which halves the throughput of a dozen threads, but not of a few (Linux: mm/shmem.c ``shmem_file_read_iter``,
mm/swap.c ``folio_mark_accessed``; the multi-generational LRU does not have these lists). Mappings avoid that, but their
page tables make them slower for pages that were read before. So both ways are used, and the share of the faster one
grows until both are equally fast or nearly everything is read by one way.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

SHARES = 16
"""Shares are in sixteenths of the pieces."""
FIRST_SHARE = SHARES // 4
STEP = 4
TRIAL_SHARE = 1
"""Share that the slower way keeps, to notice when it becomes the faster one."""
MAPPING_COST = 1.25
"""Mappings must be faster by this factor: letting go of their pages after the copy takes cores from what follows."""
MIN_BYTES = 8 << 20
"""Bytes that must be read by each way before their speeds are compared."""


class WayStats(NamedTuple):
    """What threads have read by one way: bytes, and the sum of the threads' seconds."""

    bytes: int
    seconds: float

    def since(self, earlier: WayStats) -> WayStats:
        return WayStats(self.bytes - earlier.bytes, self.seconds - earlier.seconds)


class ReadStats(NamedTuple):
    """What was read with ``read``, and from mappings."""

    read: WayStats
    mapped: WayStats

    def since(self, earlier: ReadStats) -> ReadStats:
        return ReadStats(self.read.since(earlier.read), self.mapped.since(earlier.mapped))


NOTHING_READ = ReadStats(WayStats(0, 0.0), WayStats(0, 0.0))


def can_compare(stats: ReadStats) -> bool:
    """Returns whether enough was read by both ways."""
    return min(stats.read.bytes, stats.mapped.bytes) >= MIN_BYTES and min(stats.read.seconds, stats.mapped.seconds) > 0


def next_mapped_share(share: int, stats: ReadStats) -> int:
    """Returns the share of pieces to copy from mappings next.

    Args:
        share: The share at which ``stats`` were measured.
        stats: What was read since the last decision.

    Returns:
        ``share`` if too little was read; otherwise one step towards the faster way, and at least ``TRIAL_SHARE`` for
        each.
    """
    if not can_compare(stats):
        return share
    read = stats.read.bytes / stats.read.seconds
    mapped = stats.mapped.bytes / stats.mapped.seconds / MAPPING_COST
    return min(max(share + (STEP if mapped > read else -STEP), TRIAL_SHARE), SHARES - TRIAL_SHARE)


PROBE_BYTES = 48 << 20
"""Bytes that Python's threads read by each way before they choose one."""
PROBE_GAIN = 1.4
"""Mappings must be faster by this factor: a thread's times include waiting for the GIL, and vary."""
MAPPED_SHARE = 3 * SHARES // 4
"""The share of mappings if they are faster. What is read leaves fewer pages unread for the next process."""


def choose_mapped_share(stats: ReadStats) -> int:
    """Returns the share of pieces that Python's threads copy from mappings, by what they have read in trying."""
    read = stats.read.bytes / max(stats.read.seconds, 1e-9)
    mapped = stats.mapped.bytes / max(stats.mapped.seconds, 1e-9)
    return MAPPED_SHARE if mapped > read * PROBE_GAIN else 0


class WayChooser:
    """Chooses the way of each piece of Python's threads: tries both, then decides once. Thread-safe.

    Without the compiled ring pieces are large, and trying further costs more than it can gain.
    """

    def __init__(self) -> None:
        self._share = FIRST_SHARE
        self._decided = False
        self._pieces = 0
        self._stats = NOTHING_READ
        self._lock = threading.Lock()

    def next_is_mapped(self) -> bool:
        """Returns whether the next piece is copied from a mapping. The ways alternate as evenly as their shares."""
        with self._lock:
            self._pieces += 1
            return self._pieces * self._share % SHARES < self._share

    def record(self, *, mapped: bool, size: int, seconds: float) -> None:
        """Counts a piece that was read."""
        if self._decided:
            return
        way = WayStats(size, seconds)
        with self._lock:
            read, other = self._stats
            self._stats = ReadStats(read, _sum(other, way)) if mapped else ReadStats(_sum(read, way), other)
            if min(self._stats.read.bytes, self._stats.mapped.bytes) >= PROBE_BYTES:
                self._decided = True
                self._share = choose_mapped_share(self._stats)


def _sum(one: WayStats, other: WayStats) -> WayStats:
    return WayStats(one.bytes + other.bytes, one.seconds + other.seconds)
