"""Exponential backoff with jitter: the delay before every retry of both programs."""

from __future__ import annotations

import random
from typing import NamedTuple


class Backoff(NamedTuple):
    """How delays grow. Each consecutive failure doubles the delay, up to a limit."""

    base: float
    """Delay after the first failure, in seconds."""
    cap: float
    """Upper limit of the delay before jitter, in seconds."""
    low: float = 0.5
    high: float = 1.0
    """The factor by which jitter changes a delay lies in [low, high)."""

    def delay(self, failures: int, *, jitter: float | None = None) -> float:
        """Returns the delay in seconds.

        Args:
            failures: Consecutive failures, at least 1.
            jitter: In [0, 1); spreads the retries of many clients. None: random.
        """
        if jitter is None:
            jitter = random.random()  # noqa: S311 - only spreads retries over time
        doubled = self.base * 2.0 ** min(failures - 1, 30)
        return min(self.cap, doubled) * (self.low + (self.high - self.low) * jitter)
