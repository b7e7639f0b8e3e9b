"""What a node of a large fleet may fetch from the source now: its own share at its turn, and what is late. Pure.

See ``source_share``. Sets of units are integers with one bit for each unit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.transfer.source_share import BYTES_PER_CONNECTION, LATE_SECONDS, Reach, turns_seconds

if TYPE_CHECKING:
    from tonnage.transfer.peer_index import Extent, UnitIndex
    from tonnage.transfer.source_share import SourceShare, Turn

MEASURE_SECONDS = 0.25
"""Seconds between two looks at whose turn it is."""


class SourceTurns:
    """The turns of one node.

    Args:
        index: The units.
        node: The node's name.
        size: Bytes of the load.

    Attributes:
        nodes: How many nodes load; 0: not known.
        connections: Connections to the source that the node needs for what it is to fetch.
        late: The units whose owner should have brought them by now.
    """

    def __init__(self, index: UnitIndex, node: str, size: int) -> None:
        self._index = index
        self._node = node
        self._seconds = turns_seconds(size)
        self._mean_size = size // max(1, index.for_peers.bit_count())
        self._share: SourceShare | None = None
        self._turns: list[tuple[Turn, Extent]] = []
        self._reach = Reach()
        self._within = 0
        self._measured: float | None = None
        self._all_late = False
        self.late = 0
        self.connections = 0

    @property
    def nodes(self) -> int:
        return 0 if self._share is None else self._share.nodes

    def set_share(self, share: SourceShare | None) -> None:
        """Takes over this node's part of the fleet, as the controller has it; None: not known."""
        if share != self._share:
            self._share = share
            self._turns = [] if share is None else self._index.turns(self._node, share)
            self._measured = None

    def measure(self, wanted: int, *, began: float, now: float) -> None:
        """Finds what is late, and what is within the node's reach.

        Args:
            wanted: What is to be fetched.
            began: When the node's load began.
            now: Current time.
        """
        if self._measured is not None and (self._all_late or now < self._measured + MEASURE_SECONDS):
            return
        before = 0 if self._measured is None else self.connections
        self._measured = now
        self._within = self.late = 0
        for turn, extent in self._turns:
            since = now - began - turn.begins * self._seconds
            if since >= LATE_SECONDS:
                self.late |= extent.units
            if turn.distance < self._reach.arcs and since >= (LATE_SECONDS if turn.distance else 0.0):
                self._within |= extent.units
        self._all_late = now >= began + self._seconds + LATE_SECONDS
        size = (self._within & wanted).bit_count() * self._mean_size
        self.connections = max(1, before, -(-size // BYTES_PER_CONNECTION))

    def allowed(self, wanted: int, *, have: int, pending: int, for_peers: int) -> int:
        """Returns what the node may fetch now.

        Args:
            wanted: What is to be fetched.
            have: What peers have.
            pending: What they are fetching.
            for_peers: What they can serve, and have not failed to.
        """
        trusted = (pending if self._reach.trusts_pending else 0) | (have if self._reach.trusts_peers else 0)
        return wanted & (self._within | ~for_peers) & ~(trusted & for_peers)

    def next_extent(self, allowed: int) -> int:
        """Returns the units that the node fetches next, one after the other."""
        found = next(extent.units for _, extent in self._turns if extent.units & allowed)
        return found & (self._within | allowed)

    def look(self, now: float, *, waits: bool, receives: bool) -> bool:
        """Takes note of what the node does; returns whether its reach has changed. See ``Reach.look``."""
        if not self._reach.look(now, waits=waits, receives=receives):
            return False
        self._measured = None
        return True
