"""How often one thing may be done: a few times at once, then at a steady rate."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_SWEEP_AT: Final = 4096


class Pace:
    """Allows ``burst`` runs of each key at once, and one more every ``every`` seconds.

    So what is rare happens at once, and what comes in a flood is worked on together.
    """

    def __init__(self, *, burst: int, every: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._slack = (burst - 1) * every
        self._every = every
        self._clock = clock
        self._free_at: dict[str, float] = {}

    def wait(self, key: str) -> float:
        """Returns the seconds until the key may run; 0: now."""
        return max(0.0, self._free_at.get(key, 0.0) - self._slack - self._clock())

    def spend(self, key: str) -> None:
        """Takes note of a run."""
        now = self._clock()
        if len(self._free_at) > _SWEEP_AT:
            self._free_at = {each: free for each, free in self._free_at.items() if free > now}
        self._free_at[key] = max(now, self._free_at.get(key, 0.0)) + self._every

    def forget(self, key: str) -> None:
        """Drops what is known of a key."""
        self._free_at.pop(key, None)
