"""Chooses the peers that one loader may ask, among the nodes that have its entry or are loading it.

Every loader gets its own few peers, by weighted rendezvous hashing over the names of nodes: no peer is named to many
more loaders than another, and a loader that asks again gets the same peers, as far as they still have the entry.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

MAX_COMPARED: Final = 128
"""Holders among which the peers of one loader are chosen, so that an answer costs the same with 10,000 nodes."""
MAX_VISITED: Final = 1024
"""Nodes that are looked at to find them."""
FAR_PEERS: Final = 2
"""Peers of other zones that a loader gets, if there are enough of its own: from them comes what its zone lacks."""
_COMPLETE_WEIGHT: Final = 4.0
"""How much more often a node with a whole entry is named than one that is still loading it."""


class Holder(NamedTuple):
    """A node whose peer can serve an entry, or the part of it that has been loaded."""

    node: str
    complete: bool


def choose_peers(
    asker: str, holders: Iterable[Holder], limit: int, *, is_near: Callable[[str], bool] = lambda _: True
) -> tuple[str, ...]:
    """Returns the names of the nodes that one loader asks, those first that are named to few others.

    Args:
        asker: The loader's node, which is never among them.
        holders: The candidates, in any order; those of ``find_holders``.
        limit: How many are named at most.
        is_near: Whether a node is in the asker's zone. At most ``FAR_PEERS`` others are named if there are enough.
    """
    scored = {holder.node: _score(asker, holder) for holder in holders if holder.node != asker}
    ordered = sorted(scored, key=lambda node: (-scored[node], node))
    near, far = [node for node in ordered if is_near(node)], [node for node in ordered if not is_near(node)]
    count = min(len(near), limit - min(len(far), FAR_PEERS))
    chosen = {*near[:count], *far[: limit - count]}
    return tuple(node for node in ordered if node in chosen)


def _hash(*parts: str) -> int:
    return int.from_bytes(hashlib.blake2b("/".join(parts).encode(), digest_size=8).digest(), "big")


def _score(asker: str, holder: Holder) -> float:
    """Returns a number for this pair; of the highest ones, holders of weight 4 have four times as many."""
    uniform = (_hash(asker, holder.node) + 0.5) / 2.0**64
    return -(_COMPLETE_WEIGHT if holder.complete else 1.0) / math.log(uniform)


class NodeRing:
    """The nodes whose peers are ready, in the order of their names' hashes."""

    def __init__(self, nodes: Iterable[str] = ()) -> None:
        self._nodes = set(nodes)
        self._ring = sorted((_hash(node), node) for node in self._nodes)

    def __len__(self) -> int:
        return len(self._ring)

    def __contains__(self, node: object) -> bool:
        return node in self._nodes

    def add(self, node: str) -> None:
        """Adds a node; one that is there already stays."""
        if node not in self._nodes:
            self._nodes.add(node)
            bisect.insort(self._ring, (_hash(node), node))

    def remove(self, node: str) -> None:
        """Removes a node, if it is there."""
        if node in self._nodes:
            self._nodes.remove(node)
            del self._ring[bisect.bisect_left(self._ring, (_hash(node), node))]

    def after(self, asker: str, limit: int) -> Iterator[str]:
        """Yields up to ``limit`` nodes, each once, from a place that depends on the asker's name.

        It is not the asker's own: neighbors would ask neighbors, and what one node has would go around the ring to be
        at all of thousands. From any place, it is everywhere after five or six steps.
        """
        start = bisect.bisect_left(self._ring, (_hash("after", asker), ""))
        for offset in range(min(limit, len(self._ring))):
            yield self._ring[(start + offset) % len(self._ring)][1]


def find_holders(
    asker: str,
    ring: NodeRing,
    *,
    recorded: Collection[str],
    loading: Collection[str],
    is_complete: Callable[[str], bool],
) -> list[Holder]:
    """Returns the holders of an entry that count for one loader, at most ``MAX_COMPARED``; others get others.

    Args:
        asker: The loader's node.
        ring: The nodes with a ready peer. No other node is a holder.
        recorded: The nodes with a record of the entry, in any state.
        loading: The nodes whose loaders have lately reported progress.
        is_complete: Whether a node of ``recorded`` has the whole entry.
    """
    few = len(recorded) + len(loading) <= MAX_COMPARED
    nodes = (node for node in {*recorded, *loading} if node in ring) if few else ring.after(asker, MAX_VISITED)
    found = []
    for node in nodes:
        complete = node in recorded and is_complete(node)
        if complete or node in loading:
            found.append(Holder(node, complete))
        if len(found) == MAX_COMPARED:
            break
    return found
