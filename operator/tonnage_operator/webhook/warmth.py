"""Which nodes have which entries, from a local picture of the ``NodeCache`` objects: no request lists anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryState, NodeCacheStatus
from tonnage_operator.kube.reflector import Store

if TYPE_CHECKING:
    from collections.abc import Iterable

Key = tuple[str, Medium]


@dataclass(frozen=True)
class WarmNode:
    """The ready entries of one node."""

    uid: str
    hostname: str
    entries: frozenset[Key]


def warm_node(body: dict[str, Any]) -> WarmNode:
    """Reads a ``NodeCache``."""
    metadata = body["metadata"]
    status = NodeCacheStatus.model_validate(body.get("status") or {})
    ready = (entry for entry in status.entries or () if entry.state is EntryState.READY)
    return WarmNode(
        uid=metadata["uid"],
        hostname=(metadata.get("labels") or {}).get(names.HOSTNAME_LABEL, metadata["name"]),
        entries=frozenset((entry.name, entry.medium) for entry in ready),
    )


class Warmth:
    """Host names by entry."""

    def __init__(self) -> None:
        self.store = Store(warm_node)
        self._hosts: dict[Key, set[str]] = {}
        self.store.listen(self._changed)

    def _changed(self, before: WarmNode | None, after: WarmNode | None) -> None:
        for key in _entries(before):
            hosts = self._hosts.get(key, set())
            hosts.discard(before.hostname if before else "")
            if not hosts:
                self._hosts.pop(key, None)
        for key in _entries(after):
            self._hosts.setdefault(key, set()).add(after.hostname if after else "")

    def hosts(self, key: str, medium: Medium) -> tuple[str, ...]:
        """Returns the host names of the nodes that have an entry, sorted."""
        return tuple(sorted(self._hosts.get((key, medium), ())))


def _entries(node: WarmNode | None) -> Iterable[Key]:
    return node.entries if node else ()
