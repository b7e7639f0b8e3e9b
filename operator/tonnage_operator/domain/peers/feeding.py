"""How many nodes may load at a time when nodes serve entries to each other."""

from __future__ import annotations

from typing import Final

LOADS_PER_HOLDER: Final = 4
"""Loads that one holder feeds, which soon feed each other."""
MIN_FRACTION: Final = 32
"""A node that is loading counts as a holder when it has one in so many of the bytes.

Simulated with 200 nodes and links of 25 Gb/s, all had 140 GB after 80 to 90 s, with 2 loads and an eighth after 123 s
(``benchmarks/fleet``).
"""


def count_feedable_loads(max_concurrent: int, holders: int) -> int:
    """Returns how many nodes may load at the same time.

    Without holders, all bytes come from the source, and the user's limit holds. Each holder feeds
    ``LOADS_PER_HOLDER`` loads, which become holders themselves: the number is multiplied each time that a part of the
    model has been loaded.

    Args:
        max_concurrent: ``spec.placement.maxConcurrentNodes``, at least 1.
        holders: Nodes with a ready peer that have the entry, or enough of it (``is_holder``).
    """
    return max(max_concurrent, LOADS_PER_HOLDER * holders)


def is_holder(loaded_bytes: int, total_bytes: int) -> bool:
    """Returns whether a node that is loading has enough of an entry to feed others."""
    return total_bytes > 0 and loaded_bytes * MIN_FRACTION >= total_bytes
