"""Indexes NodeCache records by node, by entry and by referring object."""

from __future__ import annotations

from collections import defaultdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from tonnage_operator.api.nodecache import EntryKey

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tonnage_operator.api.modelweights import Medium
    from tonnage_operator.api.nodecache import CacheEntry, NodeCacheStatus

_NOTHING: Final[Mapping[str, CacheEntry]] = MappingProxyType({})


class CacheIndex:
    """The records of all nodes. Updating a record takes time proportional to its entries."""

    def __init__(self, records: Mapping[str, NodeCacheStatus] | None = None) -> None:
        self._records: dict[str, NodeCacheStatus] = {}
        self._entries_by_node: dict[EntryKey, dict[str, CacheEntry]] = defaultdict(dict)
        self._nodes_by_ref: dict[str, set[str]] = defaultdict(set)
        for node, status in (records or {}).items():
            self.put(node, status)

    def put(self, node: str, status: NodeCacheStatus) -> None:
        """Adds or replaces a node's record."""
        self.drop(node)
        self._records[node] = status
        for entry in status.entries or ():
            self._entries_by_node[entry.entry_key][node] = entry
            for ref in entry.models:
                self._nodes_by_ref[ref].add(node)

    def drop(self, node: str) -> None:
        """Removes a node's record, if there is one."""
        before = self._records.pop(node, None)
        for entry in (before.entries if before else None) or ():
            key = entry.entry_key
            self._entries_by_node[key].pop(node, None)
            if not self._entries_by_node[key]:
                del self._entries_by_node[key]
            for ref in entry.models:
                named = self._nodes_by_ref.get(ref, set())
                named.discard(node)
                if not named:
                    self._nodes_by_ref.pop(ref, None)

    def get(self, node: str) -> NodeCacheStatus | None:
        return self._records.get(node)

    def entry(self, node: str, key: str, medium: Medium) -> CacheEntry | None:
        """Returns the record of an entry on a node, in any state."""
        return self.nodes_with(key, medium).get(node)

    def nodes_with(self, key: str, medium: Medium) -> Mapping[str, CacheEntry]:
        """Returns the records of an entry, by node name."""
        return self._entries_by_node.get(EntryKey(key, medium), _NOTHING)

    def nodes_referencing(self, ref: str) -> Collection[str]:
        """Returns the names of nodes with an entry of the object ``namespace/name``."""
        return self._nodes_by_ref.get(ref, frozenset())
