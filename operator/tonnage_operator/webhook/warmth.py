"""Which nodes have which entries, from a local picture of the ``NodeCache`` objects: no request lists anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryState, NodeCacheStatus
from tonnage_operator.domain import ranks
from tonnage_operator.kube.reflector import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

Key = tuple[str, Medium]


@dataclass(frozen=True)
class WarmNode:
    """The ready entries of one node."""

    uid: str
    hostname: str
    entries: Mapping[Key, str | None]
    """The ranks of each; None: all."""


def warm_node(body: dict[str, Any]) -> WarmNode:
    """Reads a ``NodeCache``."""
    metadata = body["metadata"]
    status = NodeCacheStatus.model_validate(body.get("status") or {})
    ready = (entry for entry in status.entries or () if entry.state is EntryState.READY)
    return WarmNode(
        uid=metadata["uid"],
        hostname=(metadata.get("labels") or {}).get(names.HOSTNAME_LABEL, metadata["name"]),
        entries={(entry.name, entry.medium): entry.ranks for entry in ready},
    )


class Warmth:
    """Host names by entry."""

    def __init__(self) -> None:
        self.store = Store(warm_node)
        self._hosts: dict[Key, dict[str, str | None]] = {}
        self.store.listen(self._changed)

    def _changed(self, before: WarmNode | None, after: WarmNode | None) -> None:
        for key in before.entries if before else ():
            hosts = self._hosts.get(key, {})
            hosts.pop(before.hostname if before else "", None)
            if not hosts:
                self._hosts.pop(key, None)
        for key, held in after.entries.items() if after else ():
            self._hosts.setdefault(key, {})[after.hostname if after else ""] = held

    def hosts(self, key: str, medium: Medium, wanted: str = "") -> tuple[str, ...]:
        """Returns the host names of the nodes that have an entry with the wanted ranks (empty: all), sorted."""
        found = self._hosts.get((key, medium), {})
        return tuple(sorted(host for host, held in found.items() if ranks.covers(held, wanted)))
