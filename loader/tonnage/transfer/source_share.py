"""Which part of a load a node of a large fleet fetches from the source. Pure.

Most nodes of a large fleet don't know each other, so they can't agree on who fetches what. The controller counts them
and gives each a place, 0, 1, 2, …. A place is a point on a ring: 0, 1/2, 1/4, 3/4, 1/8, …, so that the points of any
number of nodes are about evenly apart, and those of the first ones stay where they are when more nodes come. What is to
be fetched lies on the same ring, and belongs to the node at the last point before it.

The owners take turns, in the order of their places, so that each is soon through: a tensor can be passed on when it is
complete. What an owner has not brought some time after its turn, the nodes before it on the ring fetch: the *reach* of
a node is how many arcs of the ring, its own and those after it, it fetches from the source. It grows only while peers
send nothing.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

RING_BITS = 32
TURNS_BYTES_PER_SECOND = 12_500_000_000
"""The turns are as far apart as if the source sent so much. If it sends less, they overlap; it seldom sends more."""
MAX_TURNS_SECONDS = 30.0
"""After this time all owners have had their turn."""
LATE_SECONDS = 4.0
"""After its turn an owner's bytes are at all nodes of the fleet in about so many seconds; then others may help."""
WAIT_SECONDS = 2.0
"""For how long a node waits for peers until its reach doubles; the next time is twice as long."""
MAX_WAIT_SECONDS = 4.0
RECEIVES_SECONDS = 1.0
"""After so long in which peers send, a node's reach is its own arc again."""
MAX_LOOK_SECONDS = 1.0
"""Of a longer time between two looks it is not known how it was used."""
MAX_WAITS = 2
"""After so many times in a row, what peers have is fetched from the source, too."""
BYTES_PER_CONNECTION = 256 << 20
"""A node has a connection to the source for each so many bytes that it is to fetch, so that all are soon through."""


class SourceShare(NamedTuple):
    """A node's part of a fleet: its place among so many nodes that load; None: its peer isn't ready, it has none."""

    nodes: int
    place: int | None = None


@lru_cache(maxsize=8)
def ring_points(count: int) -> tuple[int, ...]:
    """Returns the points of so many places, in order, each from 0 to below ``2 ** RING_BITS``."""
    return tuple(sorted(map(_reversed, range(count))))


class Turn(NamedTuple):
    """When a node may fetch something from the source.

    Attributes:
        distance: How many nodes a node is before the owner; 0: it is the owner.
        begins: When the owner's turn is, in parts of the time that all turns take.
    """

    distance: int
    begins: float


def turns(share: SourceShare, node: str, points: Sequence[int]) -> list[Turn]:
    """Returns a node's turns for points of the ring.

    A node without a place is none of the owners, but helps as the others do.

    Args:
        share: The node's place and the number of nodes.
        node: The node's name.
        points: The points.
    """
    ring = ring_points(share.nodes)
    more = 0
    if share.place is None:
        digest = hashlib.blake2b(node.encode(), digest_size=RING_BITS // 8).digest()
        own, more = bisect_right(ring, int.from_bytes(digest, "big")) - 1, 1
    else:
        own = bisect_right(ring, _reversed(share.place)) - 1
    owners = [bisect_right(ring, point) - 1 for point in points]
    return [Turn((owner - own) % share.nodes + more, _reversed(ring[owner]) / share.nodes) for owner in owners]


def turns_seconds(size: int) -> float:
    """Returns how long the turns of all owners take, of a model of ``size`` bytes."""
    return min(size / TURNS_BYTES_PER_SECOND, MAX_TURNS_SECONDS)


class Reach:
    """How many arcs of the ring a node fetches from the source, by how long it has waited for peers.

    Attributes:
        arcs: Number of arcs; the first one is its own.
    """

    def __init__(self) -> None:
        self.arcs = 1
        self._times = 0
        self._waited = self._received = 0.0
        self._at: float | None = None

    @property
    def trusts_pending(self) -> bool:
        """Whether what peers show as being fetched is left to them."""
        return not self._times

    @property
    def trusts_peers(self) -> bool:
        """Whether what peers have is left to them."""
        return self._times < MAX_WAITS

    def look(self, now: float, *, waits: bool, receives: bool) -> bool:
        """Takes note of what the node does, several times a second; returns whether its reach has changed.

        Seconds in which it receives make up for those in which it waits: a peer that sends little now and then does not
        keep the node from the source.

        Args:
            now: Current time.
            waits: It has nothing to fetch, and something is late.
            receives: Peers send. If neither holds, the source does.
        """
        seconds = 0.0 if self._at is None else min(now - self._at, MAX_LOOK_SECONDS)
        self._at = now
        if receives:
            self._waited = max(0.0, self._waited - seconds)
            self._received += seconds
            if self.arcs == 1 or self._received < RECEIVES_SECONDS:
                return False
            self.arcs, self._times = 1, 0
            return True
        self._received = 0.0
        if not waits:
            return False
        self._waited += seconds
        if self._waited < min(WAIT_SECONDS * 2**self._times, MAX_WAIT_SECONDS):
            return False
        self._waited = 0.0
        self._times += 1
        self.arcs *= 2
        return True


def _reversed(bits: int) -> int:
    """Returns the bits of a number in the opposite order: the point of a place, and the place at a point."""
    return int(f"{bits:0{RING_BITS}b}"[::-1], 2)
