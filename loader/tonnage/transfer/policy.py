"""How many processes and connections a load uses, and how long it goes on trying. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tonnage.planning.blueprint import MIB

if TYPE_CHECKING:
    from tonnage.contract import Limits

MAX_ATTEMPTS = 8
"""Failures in a row without a byte of progress before a part gives up: about 40 seconds of waiting."""
MAX_BACKOFF_SECONDS = 15.0

PART_SIZE = 16 * MIB
"""At 90 MB/s a connection and 30 ms to the first byte, 16 MiB keep 86 % of the rate; larger parts cost more on a
retry."""
MIN_PART_SIZE = 2 * MIB
MIN_BYTES_PER_WORKER = 64 * MIB
"""A process for less than this starts later than it helps."""
MAX_WORKERS = 32
INITIAL_CONNECTIONS = 2
"""Connections a worker starts with: the best number where the store is so fast that processors are the limit."""
MAX_PART_SIZE = 64 * MIB
PART_SECONDS = 0.25
"""A part is made large enough to take a connection this long, up to ``MAX_PART_SIZE``: each request costs some work."""
MAX_CONNECTIONS = 256
"""Of all workers, unless told otherwise: 23 GB/s at the 90 MB/s that object stores give one connection."""


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How wide a load is. ``connections`` is the most of all workers together."""

    workers: int
    connections: int
    fixed: bool
    part_size: int
    max_part_size: int


def choose_concurrency(limits: Limits, *, size: int, cores: float) -> Concurrency:
    """Decides workers, connections and part size.

    Args:
        limits: What the user wants; 0 means automatic.
        size: Bytes to fetch.
        cores: Processors this process may use.
    """
    workers = limits.workers or max(1, min(round(cores), MAX_WORKERS, size // MIN_BYTES_PER_WORKER))
    connections = limits.connections or MAX_CONNECTIONS
    workers = max(1, min(workers, connections))
    part_size = limits.part_size or PART_SIZE
    largest = limits.part_size or MAX_PART_SIZE
    return Concurrency(workers, connections, bool(limits.connections), part_size, largest)


class BandwidthLimiter:
    """Keeps a load to a bandwidth by asking for parts no faster than they may come.

    libcurl's own limit is one connection's and starts anew with each request, so short requests escape it.

    Args:
        rate: Bytes a second; 0: no limit.
        now: The time, in seconds.
    """

    BURST_SECONDS = 0.1
    """Seconds; as much as comes in this time may come at once."""
    MIN_PART_SIZE = 32 << 10

    def __init__(self, rate: int, *, now: float) -> None:
        self._rate = rate
        self._since = now
        self._tokens = rate * self.BURST_SECONDS

    @property
    def max_part_size(self) -> int:
        """The largest part that keeps the flow even, in bytes."""
        return max(int(self._rate * self.BURST_SECONDS), self.MIN_PART_SIZE) if self._rate else 1 << 62

    def delay(self, now: float) -> float:
        """Returns in how many seconds the next part may be asked for; 0: now."""
        if not self._rate:
            return 0.0
        self._tokens = min(self._rate * self.BURST_SECONDS, self._tokens + (now - self._since) * self._rate)
        self._since = now
        return max(0.0, -self._tokens / self._rate)

    def consume(self, count: int) -> None:
        """Counts bytes that were asked for."""
        if self._rate:
            self._tokens -= count


class ConnectionTuner:
    """Finds how many connections a worker needs: more as long as more helps.

    A store gives one connection a fixed rate, so over a network many are needed; where processors are the limit a few
    are best. It starts small, widens while the rate follows, and settles one step back when it doesn't.

    Args:
        initial: Connections a worker to begin with.
        maximum: The most a worker may have.
    """

    INTERVAL = 0.3
    """Seconds of measurement a step."""
    SETTLING = 0.15
    """Seconds after a change that aren't measured."""
    KEEP_THRESHOLD = 0.25
    """What share of the widening the rate must follow by for the wider setting to be kept."""
    DOUBLE_THRESHOLD = 0.7
    """Where the rate follows by this much, the next step doubles; else it adds half."""

    def __init__(self, *, initial: int, maximum: int) -> None:
        self.connections = max(1, min(initial, maximum))
        self._maximum = maximum
        self._settled = self.connections >= maximum
        self._before: tuple[int, float] | None = None

    @property
    def settled(self) -> bool:
        """Whether it has stopped looking."""
        return self._settled

    def update(self, rate: float) -> None:
        """Chooses ``connections`` from the rate measured with the present number.

        Args:
            rate: Bytes a second of all workers over the last interval.
        """
        if self._settled:
            return
        factor = 2.0
        if self._before is not None:
            width, known = self._before
            followed = (rate / known - 1) / (self.connections / width - 1) if known > 0 else 1.0
            if followed < self.KEEP_THRESHOLD:
                self.connections = width
                self._settled = True
                return
            factor = 2.0 if followed >= self.DOUBLE_THRESHOLD else 1.5
        self._before = (self.connections, rate)
        self.connections = min(self._maximum, max(self.connections + 1, int(self.connections * factor)))
        self._settled = self.connections == self._before[0]
