"""Cutting a row of weights into contiguous runs, so that the heaviest run is as light as it can be."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def linear_partition(weights: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Cuts ``weights`` into contiguous runs whose largest sum is the smallest possible.

    Among the cuts with that largest sum, the runs are made about even from left to right. Takes time proportional to
    ``len(weights)`` times the logarithm of their sum.

    Args:
        weights: Non-negative weights, such as bytes of tensors in file order.
        count: How many runs, at least 1; fewer when there are fewer weights, so that no run is empty.

    Returns:
        Half-open index ranges in order, ``min(count, len(weights))`` of them, that cover all weights.

    Raises:
        ValueError: ``count`` is below 1 or a weight below 0.
    """
    if count < 1 or min(weights, default=0) < 0:
        message = f"cannot cut weights from {min(weights, default=0)} up into {count} runs"
        raise ValueError(message)
    total = len(weights)
    count = min(count, total)
    if not count:
        return []
    sums = [0, *accumulate(weights)]
    needed = _runs_needed(sums, _smallest_bound(sums, max(weights), count))
    ends = needed.ends
    ranges: list[tuple[int, int]] = []
    start = 0
    for left in range(count, 1, -1):
        # The first end after which the rest still fits into the runs left, and the last that leaves one weight each.
        first = max(start + 1, bisect_left(needed.runs, -(left - 1), key=lambda runs: -runs))
        last = min(ends[start], total - left + 1)
        ideal = sums[start] + (sums[total] - sums[start]) / left
        end = min(max(_nearest(sums, ideal), first), last)
        ranges.append((start, end))
        start = end
    ranges.append((start, total))
    return ranges


class _Needed:
    """For each index: where a run from there must end, and how many runs all from there on need."""

    __slots__ = ("ends", "runs")

    def __init__(self, size: int) -> None:
        self.ends = [size] * (size + 1)
        self.runs = [0] * (size + 1)


def _runs_needed(sums: Sequence[int], bound: int) -> _Needed:
    size = len(sums) - 1
    needed = _Needed(size)
    end = size
    for start in range(size - 1, -1, -1):
        while sums[end] - sums[start] > bound:
            end -= 1
        needed.ends[start] = end
        needed.runs[start] = 1 + needed.runs[end]
    return needed


def _smallest_bound(sums: Sequence[int], largest: int, count: int) -> int:
    """Returns the smallest sum such that ``count`` runs of at most that sum cover everything."""
    low, high = max(largest, -(-sums[-1] // count)), sums[-1]
    while low < high:
        middle = (low + high) // 2
        if _fits(sums, middle, count):
            high = middle
        else:
            low = middle + 1
    return low


def _fits(sums: Sequence[int], bound: int, count: int) -> bool:
    start, size = 0, len(sums) - 1
    for _ in range(count):
        start = bisect_right(sums, sums[start] + bound, lo=start) - 1
        if start == size:
            return True
    return False


def _nearest(sums: Sequence[int], value: float) -> int:
    """Returns the index of the sum closest to ``value``."""
    after = min(bisect_left(sums, value), len(sums) - 1)
    return after - 1 if after and value - sums[after - 1] < sums[after] - value else after
