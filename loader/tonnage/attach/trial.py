"""Which of two ways is the quicker one, tried out on the first pieces of work."""

from __future__ import annotations

import statistics
from typing import Final

UNCOUNTED: Final = 12
"""The first pieces count for nothing: buffers are touched and threads are started meanwhile."""
SAMPLES: Final = 24
"""Pieces that each way is tried with, one way after the other: what all threads do at once is what makes one slow."""
MARGIN: Final = 0.9
"""The second way has to take less than this share of the first one's time."""


class Trial:
    """Chooses between way 0 and way 1: by turns first, then the quicker one by the median of its time for a byte.

    Threads share one without a lock: a piece that is counted twice or not at all among them does no harm.
    """

    def __init__(self) -> None:
        self._started = 0
        self._costs: tuple[list[float], list[float]] = ([], [])
        self._winner: int | None = None

    def choose(self) -> int:
        """Returns the way to take with the next piece."""
        if self._winner is not None:
            return self._winner
        self._started += 1
        return int(UNCOUNTED + SAMPLES < self._started <= UNCOUNTED + 2 * SAMPLES)

    def took(self, way: int, size: int, seconds: float) -> None:
        """Takes in how long a piece took: ``size`` bytes, more than 0, on this way."""
        if self._winner is not None or self._started <= UNCOUNTED:
            return
        self._costs[way].append(seconds / size)
        first, second = self._costs
        if len(second) >= SAMPLES:
            self._winner = int(bool(first) and statistics.median(second) < MARGIN * statistics.median(first))
