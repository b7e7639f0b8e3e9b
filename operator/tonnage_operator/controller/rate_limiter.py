"""Rate limits by key: a burst, then a steady rate."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_CLEANUP_THRESHOLD: Final = 4096


class RateLimiter:
    """Allows ``burst`` runs of each key at once, and one more every ``interval`` seconds.

    Rare changes are handled immediately; frequent ones are batched.
    """

    def __init__(self, *, burst: int, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst_allowance = (burst - 1) * interval
        self._interval = interval
        self._clock = clock
        self._free_at: dict[str, float] = {}

    def delay(self, key: str) -> float:
        """Returns the seconds until the key may run; 0: now."""
        return max(0.0, self._free_at.get(key, 0.0) - self._burst_allowance - self._clock())

    def consume(self, key: str) -> None:
        """Records a run of the key."""
        now = self._clock()
        if len(self._free_at) > _CLEANUP_THRESHOLD:
            self._free_at = {each: free for each, free in self._free_at.items() if free > now}
        self._free_at[key] = max(now, self._free_at.get(key, 0.0)) + self._interval

    def drop(self, key: str) -> None:
        self._free_at.pop(key, None)
