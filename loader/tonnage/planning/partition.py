"""Divides a sequence of weights into contiguous runs, minimizing the largest sum (linear partition problem)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def linear_partition(weights: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Divides ``weights`` into contiguous runs so that the largest sum is as small as possible.

    Among such divisions, the runs are about equal, chosen from left to right. Takes O(n log s) time for n weights with
    the sum s.

    Args:
        weights: Non-negative weights, such as bytes of tensors in file order.
        count: Number of runs, at least 1. With fewer weights there are fewer runs, so that none is empty.

    Returns:
        ``min(count, len(weights))`` half-open index ranges, in order, that cover all weights.

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
        # The smallest end after which the rest fits into the remaining runs; the largest that leaves each a weight.
        first = max(start + 1, bisect_left(needed.runs, -(left - 1), key=lambda runs: -runs))
        last = min(ends[start], total - left + 1)
        ideal = sums[start] + (sums[total] - sums[start]) / left
        end = min(max(_nearest(sums, ideal), first), last)
        ranges.append((start, end))
        start = end
    ranges.append((start, total))
    return ranges


class _Needed:
    """For each index: the largest end of a run from there, and the number of runs for all weights from there."""

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
    """Returns the smallest bound such that ``count`` runs with sums of at most it cover all weights."""
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
