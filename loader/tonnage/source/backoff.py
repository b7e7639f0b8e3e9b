"""The delay between retries: exponential backoff with jitter."""

from __future__ import annotations

import random

INITIAL_BACKOFF_SECONDS = 0.2
"""Delay after the first failure; each consecutive failure doubles it."""
MAX_RETRY_AFTER_SECONDS = 120.0
"""Upper limit for a server's Retry-After, in seconds."""


def backoff_seconds(
    failures: int, *, maximum: float, retry_after: float | None = None, jitter: float | None = None
) -> float:
    """Returns how many seconds to wait.

    Args:
        failures: Consecutive failures, at least 1.
        maximum: Upper limit of the exponential delay, in seconds.
        retry_after: The server's Retry-After, in seconds. The result is never less than it, up to
            ``MAX_RETRY_AFTER_SECONDS``.
        jitter: In [0, 1); spreads the retries of many clients. None: random. Tests set it.
    """
    if jitter is None:
        jitter = random.random()  # noqa: S311  # only spreads retries over time
    seconds = min(maximum, INITIAL_BACKOFF_SECONDS * 2.0 ** (failures - 1)) * (0.5 + jitter / 2)
    if retry_after is not None:
        seconds = max(min(retry_after, MAX_RETRY_AFTER_SECONDS), 0.0) + seconds * 0.1
    return seconds
