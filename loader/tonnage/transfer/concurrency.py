"""Chooses how many worker processes and connections a load uses, and the size of its parts. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.planning.blueprint import MIB
from tonnage.record import Record

if TYPE_CHECKING:
    from tonnage.contract import Limits

PART_SIZE = 16 * MIB
"""At 90 MB/s per connection and 30 ms to the first byte, 16 MiB reach 86 % of the rate. Larger parts cost more on a
retry."""
MIN_PART_SIZE = 2 * MIB
MIN_BYTES_PER_WORKER = 64 * MIB
"""For fewer bytes, starting another process takes longer than it saves."""
MAX_WORKERS = 32
INITIAL_CONNECTIONS = 2
"""Connections per worker at the start: the best number if the store is so fast that the CPU is the limit."""
MAX_PART_SIZE = 64 * MIB
PART_SECONDS = 0.25
"""Parts grow until a connection needs this long for one, up to ``MAX_PART_SIZE``, because each request has a cost."""
MAX_CONNECTIONS = 256
"""Default limit for all workers together: 23 GB/s at the 90 MB/s that object stores give one connection."""


class Concurrency(Record, frozen=True):
    """Workers, connections and part sizes of a load.

    Attributes:
        workers: Number of worker processes.
        connections: Maximum total connections of all workers.
        fixed: Whether the user set the number of connections, so that it is not tuned.
        part_size: Part size in bytes at the start.
        max_part_size: Maximum part size in bytes.
    """

    workers: int
    connections: int
    fixed: bool
    part_size: int
    max_part_size: int


def choose_concurrency(limits: Limits, *, size: int, cores: float) -> Concurrency:
    """Chooses workers, connections and part sizes.

    Args:
        limits: The user's limits; 0 means automatic.
        size: Bytes to fetch.
        cores: CPU cores that this process may use.
    """
    workers = limits.workers or max(1, min(round(cores), MAX_WORKERS, size // MIN_BYTES_PER_WORKER))
    connections = limits.connections or MAX_CONNECTIONS
    workers = max(1, min(workers, connections))
    part_size = limits.part_size or PART_SIZE
    largest = limits.part_size or MAX_PART_SIZE
    return Concurrency(workers, connections, bool(limits.connections), part_size, largest)


class ConnectionTuner:
    """Finds how many connections a worker needs, by adding connections while the rate increases.

    A store limits the rate of one connection, so many connections are needed over a network. If the CPU is the limit,
    a few are best. The tuner starts with few and adds more while the rate increases; when it no longer does, the tuner
    returns to the previous number and settles.

    Args:
        initial: Connections per worker at the start.
        maximum: Maximum connections per worker.

    Attributes:
        connections: The current number of connections per worker.
    """

    INTERVAL = 0.3
    """Seconds over which the rate is measured."""
    SETTLING = 0.15
    """Seconds after a change that are not measured."""
    KEEP_THRESHOLD = 0.25
    """More connections are kept if the rate increased by at least this share of their relative increase."""
    DOUBLE_THRESHOLD = 0.7
    """If the rate increased by at least this share, the next step doubles the connections; otherwise it adds half."""

    def __init__(self, *, initial: int, maximum: int) -> None:
        self.connections = max(1, min(initial, maximum))
        self._maximum = maximum
        self._settled = self.connections >= maximum
        self._previous: tuple[int, float] | None = None

    @property
    def settled(self) -> bool:
        """Whether the number of connections is final."""
        return self._settled

    def update(self, rate: float) -> None:
        """Chooses the next number of connections from the rate that the current one reached.

        Args:
            rate: Bytes per second of all workers over the last interval.
        """
        if self._settled:
            return
        factor = 2.0
        if self._previous is not None:
            connections, previous_rate = self._previous
            ratio = (rate / previous_rate - 1) / (self.connections / connections - 1) if previous_rate > 0 else 1.0
            if ratio < self.KEEP_THRESHOLD:
                self.connections = connections
                self._settled = True
                return
            factor = 2.0 if ratio >= self.DOUBLE_THRESHOLD else 1.5
        self._previous = (self.connections, rate)
        self.connections = min(self._maximum, max(self.connections + 1, int(self.connections * factor)))
        self._settled = self.connections == self._previous[0]
