"""Which of two ways is the quicker one, tried out on the first pieces of work."""

from __future__ import annotations

import statistics
from typing import Final

SETTLING: Final = 12
"""Pieces after a change of the way that count for nothing: the other threads still do what was chosen before."""
STARTING: Final = 24
"""The same for the very first pieces, while buffers are touched and threads are started."""
SAMPLES: Final = 24
"""Pieces that count, for each way: what all threads do at once is what makes one slow."""
MARGIN: Final = 0.9
"""The mapping, way 1, has to take less than this share of the other's time, since its tables are given back later."""
CLEAR: Final = 1.5
"""Below this ratio of the two times the verdict is looked at once more."""
PATIENCE: Final = 8 * SAMPLES
"""Pieces until then."""


class Trial:
    """Chooses between way 0 and way 1: by turns first, then the quicker one by the median of its time for a byte.

    Threads share one without a lock: a piece that is counted twice or not at all among them does no harm.
    """

    def __init__(self, first: int = 0) -> None:
        """Begins with the way that is expected to be the quicker one."""
        self._way = first
        self._skip = STARTING
        self._costs: tuple[list[float], list[float]] = ([], [])
        self._verdicts = 0
        self._closed = False

    def choose(self) -> int:
        """Returns the way to take with the next piece."""
        return self._way

    def took(self, way: int, size: int, seconds: float) -> None:
        """Takes in how long a piece took: ``size`` bytes, more than 0, on this way."""
        if self._closed or way != self._way:
            return
        if self._skip > 0:
            self._skip -= 1
            return
        costs = self._costs[way]
        costs.append(seconds / size)
        if len(costs) < SAMPLES:
            return
        if len(self._costs[1 - way]) < SAMPLES:
            self._skip, self._way = SETTLING, 1 - way
        else:
            self._decide()

    def _decide(self) -> None:
        read, mapped = (statistics.median(costs) for costs in self._costs)
        self._way = int(mapped < MARGIN * read)
        self._verdicts += 1
        self._closed = self._verdicts > 1 or max(read, mapped) >= CLEAR * min(read, mapped)
        if not self._closed:
            self._costs = ([], [])
            self._skip = SETTLING + PATIENCE
