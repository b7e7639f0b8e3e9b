"""Limits the bandwidth of a load. Pure: no clock."""

from __future__ import annotations


class BandwidthLimiter:
    """Limits the bandwidth by delaying requests for parts (a token bucket).

    libcurl's own limit is per connection and starts again with each request, so it has no effect on short requests.

    Args:
        rate: Bytes per second; 0: no limit.
        now: Current time, in seconds.
    """

    BURST_SECONDS = 0.1
    """The bytes of this time may be requested at once."""
    MIN_PART_SIZE = 32 << 10

    def __init__(self, rate: int, *, now: float) -> None:
        self._rate = rate
        self._since = now
        self._tokens = rate * self.BURST_SECONDS

    @property
    def max_part_size(self) -> int:
        """The largest part size that keeps the rate even, in bytes."""
        return max(int(self._rate * self.BURST_SECONDS), self.MIN_PART_SIZE) if self._rate else 1 << 62

    def delay(self, now: float) -> float:
        """Returns the seconds until the next part may be requested; 0: now."""
        if not self._rate:
            return 0.0
        self._tokens = min(self._rate * self.BURST_SECONDS, self._tokens + (now - self._since) * self._rate)
        self._since = now
        return max(0.0, -self._tokens / self._rate)

    def consume(self, count: int) -> None:
        """Subtracts the bytes of a request from the tokens."""
        if self._rate:
            self._tokens -= count
