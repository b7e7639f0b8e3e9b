"""What the gate's process knows of the cluster, and which nodes it looks at after a change."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from tonnage_operator.domain.gate.observed import (
    GatedNode,
    GatingModel,
    NodeEntries,
    parse_gated_node,
    parse_gating_model,
    parse_node_entries,
)
from tonnage_operator.domain.installation import GateMode
from tonnage_operator.kube.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tonnage_operator.domain.installation import Installation


class GateState:
    """Stores of nodes, models and records. ``enqueue`` is called with the name of each node that a change concerns."""

    def __init__(self, installation: Installation, enqueue: Callable[[str], None]) -> None:
        self.installation = installation
        self._enqueue = enqueue
        self.node_store: Store[GatedNode] = Store(parse_gated_node)
        self.entries_store: Store[NodeEntries] = Store(parse_node_entries)
        self.model_store: Store[GatingModel] = Store(partial(parse_gating_model, installation=installation))
        self._nodes: dict[str, GatedNode] = {}
        self._entries: dict[str, NodeEntries] = {}
        self._waiting: set[str] = set()
        self.node_store.add_event_handler(self._node_changed)
        self.entries_store.add_event_handler(self._entries_changed)
        self.model_store.add_event_handler(self._model_changed)

    @property
    def models(self) -> Iterable[GatingModel]:
        """All models."""
        return self.model_store

    def node(self, name: str) -> GatedNode | None:
        """Returns a node; None if it doesn't exist."""
        return self._nodes.get(name)

    def entries(self, name: str) -> NodeEntries | None:
        """Returns the record of a node; None if there is none."""
        return self._entries.get(name)

    def put_node(self, body: dict[str, Any]) -> None:
        """Stores a node as the API server has just returned it."""
        self.node_store.put(body)

    @property
    def waiting(self) -> int:
        """Number of nodes that may have to be opened."""
        return len(self._waiting)

    def enqueue_waiting(self) -> None:
        """Enqueues all nodes that may have to be opened."""
        for name in sorted(self._waiting):
            self._enqueue(name)

    def _node_changed(self, before: GatedNode | None, after: GatedNode | None) -> None:
        if after is None:
            # A new node of the same name may have come before the old one's deletion was seen.
            if before and (known := self._nodes.get(before.node.name)) and known.node.uid == before.node.uid:
                del self._nodes[before.node.name]
                self._waiting.discard(before.node.name)
                self._enqueue(before.node.name)
            return
        name = after.node.name
        self._nodes[name] = after
        if self._may_wait(after):
            self._waiting.add(name)
            self._enqueue(name)
        else:
            self._waiting.discard(name)

    def _may_wait(self, gated: GatedNode) -> bool:
        if self.installation.gate.mode is GateMode.CONDITION:
            return gated.condition is None or gated.condition.status != "True"
        return bool(gated.startup_taints(self.installation))

    def _entries_changed(self, before: NodeEntries | None, after: NodeEntries | None) -> None:
        if after is not None:
            self._entries[after.node] = after
        elif before and (known := self._entries.get(before.node)) and known.node_uids == before.node_uids:
            del self._entries[before.node]
        for name in {each.node for each in (before, after) if each} & self._waiting:
            self._enqueue(name)

    def _model_changed(self, before: GatingModel | None, after: GatingModel | None) -> None:
        if any(each is not None and each.taints for each in (before, after)):
            self.enqueue_waiting()
