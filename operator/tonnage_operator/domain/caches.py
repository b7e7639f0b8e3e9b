"""What lies on which node, found by node, by entry and by object without looking through all of it."""

from __future__ import annotations

from collections import defaultdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from tonnage_operator.api.modelweights import Medium

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tonnage_operator.api.nodecache import CacheEntry, NodeCacheStatus

Key = tuple[str, Medium]
"""Cache key and medium: what an entry is on a node."""

_NOTHING: Final[Mapping[str, CacheEntry]] = MappingProxyType({})


class Caches:
    """The records of all nodes. Taking in one record costs as much as that record has entries."""

    def __init__(self, records: Mapping[str, NodeCacheStatus] | None = None) -> None:
        self._records: dict[str, NodeCacheStatus] = {}
        self._holders: dict[Key, dict[str, CacheEntry]] = defaultdict(dict)
        self._named: dict[str, set[str]] = defaultdict(set)
        for node, status in (records or {}).items():
            self.put(node, status)

    def put(self, node: str, status: NodeCacheStatus) -> None:
        """Takes in a node's record in place of the one before."""
        self.drop(node)
        self._records[node] = status
        for entry in status.entries or ():
            self._holders[entry.name, entry.medium][node] = entry
            for ref in entry.models:
                self._named[ref].add(node)

    def drop(self, node: str) -> None:
        """Forgets a node's record, if there is one."""
        before = self._records.pop(node, None)
        for entry in (before.entries if before else None) or ():
            key = (entry.name, entry.medium)
            self._holders[key].pop(node, None)
            if not self._holders[key]:
                del self._holders[key]
            for ref in entry.models:
                named = self._named.get(ref, set())
                named.discard(node)
                if not named:
                    self._named.pop(ref, None)

    def get(self, node: str) -> NodeCacheStatus | None:
        """Returns a node's record."""
        return self._records.get(node)

    def entry(self, node: str, key: str, medium: Medium) -> CacheEntry | None:
        """Returns the record of an entry on a node, whatever its state is."""
        return self.holders(key, medium).get(node)

    def holders(self, key: str, medium: Medium) -> Mapping[str, CacheEntry]:
        """Returns the record of an entry on each node that has one, by the node's name."""
        return self._holders.get((key, medium), _NOTHING)

    def naming(self, ref: str) -> Collection[str]:
        """Returns the nodes with an entry that names the object ``namespace/name``."""
        return self._named.get(ref, frozenset())
