"""The nodes that load an entry, each with a place among those that can serve it: by it, nodes share the source. Pure.

The places are 0, 1, 2, … without a gap, and a node keeps its place for as long as it loads: only when a node leaves,
the one with the last place takes over the free one.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

ASKING_SECONDS: Final = 20.0
"""Seconds after its last question about peers in which a loader counts as loading: it asks every 5 seconds."""


class LoadingNodes:
    """The nodes whose loaders have lately asked for the peers of one entry."""

    def __init__(self) -> None:
        self._asked: OrderedDict[str, float] = OrderedDict()
        """When each node asked, the latest last."""
        self._places: dict[str, int] = {}
        self._by_place: list[str] = []

    def note(self, node: str, now: float, *, serves: bool) -> None:
        """Notes that a loader on a node has asked.

        Args:
            node: The node.
            now: Monotonic, in seconds.
            serves: Whether the node has a ready peer: only then it has a place.
        """
        self._asked[node] = now
        self._asked.move_to_end(node)
        if serves and node not in self._places:
            self._places[node] = len(self._by_place)
            self._by_place.append(node)
        elif not serves:
            self._leave(node)

    def nodes(self, now: float) -> Collection[str]:
        """Returns the nodes that count as loading."""
        while self._asked:
            node, at = next(iter(self._asked.items()))
            if now - at < ASKING_SECONDS:
                break
            del self._asked[node]
            self._leave(node)
        return self._asked.keys()

    @property
    def places(self) -> int:
        """How many nodes have a place."""
        return len(self._by_place)

    def place(self, node: str) -> int | None:
        """Returns a node's place; None if it has none."""
        return self._places.get(node)

    def _leave(self, node: str) -> None:
        place = self._places.pop(node, None)
        if place is None:
            return
        last = self._by_place.pop()
        if last != node:
            self._by_place[place] = last
            self._places[last] = place
