"""How long to wait before something is tried again."""

from __future__ import annotations

import random

FIRST_WAIT = 0.2
"""Seconds; each further failure in a row doubles them."""
LONGEST_RETRY_AFTER = 120.0
"""For how many seconds at most a server's own wish is obeyed."""


def backoff(failures: int, *, longest: float, retry_after: float | None = None, jitter: float | None = None) -> float:
    """Returns how many seconds to wait.

    Args:
        failures: In a row, from 1 on.
        longest: Where the doubling ends, in seconds.
        retry_after: What the server asked for, in seconds. It is never undercut, up to ``LONGEST_RETRY_AFTER``.
        jitter: From 0 up to 1, so that a fleet doesn't come back at the same moment; None: random.
    """
    if jitter is None:
        jitter = random.random()  # noqa: S311  # spreads clients over time, nothing depends on its quality
    waiting = min(longest, FIRST_WAIT * 2.0 ** (failures - 1)) * (0.5 + jitter / 2)
    if retry_after is not None:
        waiting = max(min(retry_after, LONGEST_RETRY_AFTER), 0.0) + waiting * 0.1
    return waiting
