"""How long to wait before something is tried again."""

from __future__ import annotations

import random

INITIAL_BACKOFF_SECONDS = 0.2
"""Seconds; each further failure in a row doubles them."""
MAX_RETRY_AFTER_SECONDS = 120.0
"""For how many seconds at most a server's own wish is obeyed."""


def backoff_seconds(
    failures: int, *, maximum: float, retry_after: float | None = None, jitter: float | None = None
) -> float:
    """Returns how many seconds to wait.

    Args:
        failures: In a row, from 1 on.
        maximum: Where the doubling ends, in seconds.
        retry_after: What the server asked for, in seconds. It is never undercut, up to ``MAX_RETRY_AFTER_SECONDS``.
        jitter: From 0 up to 1, so that a fleet doesn't come back at the same moment; None: random.
    """
    if jitter is None:
        jitter = random.random()  # noqa: S311  # spreads clients over time, nothing depends on its quality
    seconds = min(maximum, INITIAL_BACKOFF_SECONDS * 2.0 ** (failures - 1)) * (0.5 + jitter / 2)
    if retry_after is not None:
        seconds = max(min(retry_after, MAX_RETRY_AFTER_SECONDS), 0.0) + seconds * 0.1
    return seconds
