"""Index of the nodes that have an entry ready, from an informer's store, so that reviews need no list request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tonnage.contract import ranks
from tonnage_operator.api import names
from tonnage_operator.api.nodecache import EntryKey, EntryState, NodeCacheStatus
from tonnage_operator.kube.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage_operator.api.modelweights import Medium


@dataclass(frozen=True)
class WarmNode:
    """The ready entries of one node."""

    hostname: str
    entries: Mapping[EntryKey, str | None]
    """The ranks of each entry; None: all."""


def parse_warm_node(body: dict[str, Any]) -> WarmNode:
    metadata = body["metadata"]
    status = NodeCacheStatus.model_validate(body.get("status") or {})
    ready = (entry for entry in status.entries or () if entry.state is EntryState.READY)
    return WarmNode(
        hostname=(metadata.get("labels") or {}).get(names.HOSTNAME_LABEL, metadata["name"]),
        entries={entry.entry_key: entry.ranks for entry in ready},
    )


class WarmNodes:
    """Hostnames by entry."""

    def __init__(self) -> None:
        self.store = Store(parse_warm_node)
        self._hostnames: dict[EntryKey, dict[str, str | None]] = {}
        self.store.add_event_handler(self._changed)

    def _changed(self, before: WarmNode | None, after: WarmNode | None) -> None:
        if before:
            for key in before.entries:
                hostnames = self._hostnames.get(key, {})
                hostnames.pop(before.hostname, None)
                if not hostnames:
                    self._hostnames.pop(key, None)
        if after:
            for key, available_ranks in after.entries.items():
                self._hostnames.setdefault(key, {})[after.hostname] = available_ranks

    def hostnames(self, key: str, medium: Medium, wanted_ranks: str = "") -> tuple[str, ...]:
        """Returns the sorted hostnames of the nodes that have an entry with the wanted ranks (empty: all)."""
        found = self._hostnames.get(EntryKey(key, medium), {})
        return tuple(
            sorted(
                hostname
                for hostname, available_ranks in found.items()
                if ranks.includes_ranks(available_ranks, wanted_ranks)
            )
        )
