"""The delay between retries of requests to a source."""

from __future__ import annotations

from tonnage.contract.backoff import Backoff

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
    seconds = Backoff(INITIAL_BACKOFF_SECONDS, maximum).delay(failures, jitter=jitter)
    if retry_after is not None:
        seconds = max(min(retry_after, MAX_RETRY_AFTER_SECONDS), 0.0) + seconds * 0.1
    return seconds
