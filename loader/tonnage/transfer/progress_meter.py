"""Measures the rate of a transfer and estimates the remaining time."""

from __future__ import annotations

import time

from tonnage.contract import Progress

REPORT_SECONDS = 0.2
RATE_SECONDS = 3.0
"""Seconds over which the reported rate is averaged."""
SETTLED_SECONDS = 1.0
"""Seconds after the first byte without an estimate of the remaining time: connections are still being opened."""


class ProgressMeter:
    """Counts received bytes and measures their rate.

    Args:
        total: Bytes of the whole load.
        resumed: Bytes that an earlier load left on disk.
    """

    def __init__(self, *, total: int, resumed: int) -> None:
        now = time.monotonic()
        self._total = total
        self._resumed = resumed
        self._received = 0
        self._wasted = 0
        self._reported = 0.0
        self._window = [(now, 0)]
        self._interval = (now, 0)
        self._measuring = False

    @property
    def loaded(self) -> int:
        """Bytes loaded, including those in flight, at most ``total``."""
        return max(0, min(self._total, self._resumed + self._received - self._wasted))

    def add_received(self, count: int) -> None:
        self._received += count

    def add_refetched(self, count: int) -> None:
        self._wasted += count

    def interval_rate(self, now: float, *, skip: float, seconds: float) -> float | None:
        """Returns bytes per second since the last call that returned a number; None before ``skip + seconds`` passed.

        The first ``skip`` seconds and the time before the first byte are not measured.
        """
        since, count = self._interval
        if not self._measuring:
            if self._received > count and now - since >= skip:
                self._measuring = True
                self._interval = (now, self._received)
            elif self._received == count:
                self._interval = (now, count)
            return None
        if now - since < seconds:
            return None
        self._measuring = False
        self._interval = (now, self._received)
        return (self._received - count) / (now - since)

    def is_report_due(self, now: float) -> bool:
        """Whether a progress report is due; True at most once per ``REPORT_SECONDS``."""
        if now - self._reported < REPORT_SECONDS:
            return False
        self._reported = now
        return True

    def progress(self, now: float, *, verified: int, tensors: int, retries: int) -> Progress:
        self._window.append((now, self._received))
        while len(self._window) > 2 and (now - self._window[0][0] > RATE_SECONDS or not self._window[1][1]):
            self._window.pop(0)
        since, count = self._window[0]
        rate = (self._received - count) / (now - since) if now > since else 0.0
        left = self._total - self.loaded
        settled = rate > 0 and now - since >= SETTLED_SECONDS
        return Progress(
            phase="loading",
            loaded_bytes=self.loaded,
            total_bytes=self._total,
            bytes_per_second=rate,
            remaining_seconds=left / rate if settled else -1.0,
            tensors_verified=verified,
            tensors=tensors,
            retries=retries,
        )
