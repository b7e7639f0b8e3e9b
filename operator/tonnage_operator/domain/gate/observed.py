"""What the gate knows of nodes, of the entries on them, and of the models that wait for nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tonnage_operator.api import names
from tonnage_operator.api.base import ConditionStatus
from tonnage_operator.api.modelweights import Delivery, Medium
from tonnage_operator.api.nodecache import EntryKey, EntryState, NodeCacheStatus
from tonnage_operator.domain import units
from tonnage_operator.domain.nodecache.capacity import find_size_problem
from tonnage_operator.domain.observed.model_weights import parse_model_weights
from tonnage_operator.domain.observed.node import Node, parse_node

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from tonnage_operator.api.base import Body
    from tonnage_operator.api.placement import PlacementSpec
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.observed.model_weights import ModelWeights

CONDITION_TYPE: Final = f"{names.GROUP}/WeightsWarm"
"""Type of the node's condition with ``gate.mode: Condition``."""


@dataclass(frozen=True, slots=True)
class NodeCondition:
    """The condition that the gate has written earlier."""

    status: str
    reason: str
    message: str
    since: datetime | None


@dataclass(frozen=True, slots=True)
class GatedNode:
    """A node, with the times from which its gate's timeout counts. All of them are the API server's."""

    node: Node
    created: datetime
    taints_changed: datetime | None = None
    """When its taints were last changed; None if that isn't recorded."""
    taints_added: Mapping[str, datetime] = field(default_factory=dict)
    """When taints were added, by key, as far as that is recorded."""
    condition: NodeCondition | None = None

    def startup_taints(self, installation: Installation) -> tuple[str, ...]:
        """Returns the keys of its taints that the gate removes."""
        return tuple(sorted({taint.key for taint in self.node.taints} & set(installation.gate.taints)))


def parse_gated_node(body: Body) -> GatedNode:
    """Parses a Node. Times that are not RFC 3339 are taken as not recorded, except that of its creation."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    changes = [
        time
        for entry in metadata.get("managedFields") or ()
        if not entry.get("subresource") and "f:taints" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
        if (time := _parse_time(entry.get("time")))
    ]
    added = {each["key"]: _parse_time(each.get("timeAdded")) for each in spec.get("taints") or ()}
    ours = [each for each in status.get("conditions") or () if each["type"] == CONDITION_TYPE]
    return GatedNode(
        node=parse_node(body),
        created=units.parse_time(metadata["creationTimestamp"]),
        taints_changed=max(changes, default=None),
        taints_added={key: time for key, time in added.items() if time},
        condition=_parse_condition(ours[0]) if ours else None,
    )


def _parse_time(text: object) -> datetime | None:
    try:
        moment = units.parse_time(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return moment if moment is None or moment.tzinfo else None


def _parse_condition(body: Body) -> NodeCondition:
    return NodeCondition(
        status=body.get("status", ""),
        reason=body.get("reason", ""),
        message=body.get("message", ""),
        since=_parse_time(body.get("lastTransitionTime")),
    )


@dataclass(frozen=True, slots=True)
class NodeEntries:
    """The ready entries in the record of a node."""

    node: str
    node_uids: frozenset[str]
    """The node that the record is about. A record may outlive its node, and a new node may have the same name."""
    boot_id: str | None
    ready: frozenset[EntryKey]
    loading: frozenset[EntryKey]

    def is_warm(self, node: Node, key: EntryKey) -> bool:
        """Returns whether the node has the entry, complete, since this node exists and, in memory, since it booted."""
        booted = key.medium is not Medium.MEMORY or self.boot_id == (node.boot_id or None)
        return key in self.ready and self.is_about(node) and booted

    def is_about(self, node: Node) -> bool:
        """Returns whether the record is about this node, and not about an earlier one of the same name."""
        return node.uid in self.node_uids


def parse_node_entries(body: Body) -> NodeEntries:
    """Parses a ``NodeCache``. An entry with some ranks only is not ready."""
    metadata = body["metadata"]
    status = NodeCacheStatus.model_validate(body.get("status") or {})
    entries = status.entries or ()
    owners = metadata.get("ownerReferences") or ()
    return NodeEntries(
        node=metadata["name"],
        node_uids=frozenset(each["uid"] for each in owners if each.get("kind") == "Node"),
        boot_id=status.boot_id,
        ready=frozenset(each.entry_key for each in entries if each.state is EntryState.READY and not each.ranks),
        loading=frozenset(each.entry_key for each in entries if each.state is EntryState.LOADING),
    )


@dataclass(frozen=True)
class GatingModel:
    """A ``ModelWeights``, as far as nodes wait for it."""

    namespace: str
    name: str
    uid: str
    placement: PlacementSpec
    taints: frozenset[str]
    """Keys of the startup taints that wait for it; empty: none does."""
    timeout: float
    """Seconds that a node waits for it at most."""
    key: EntryKey | None
    """The entry of the revision in use; None while its source isn't resolved."""
    problem: str
    """Why it isn't resolved; empty if it is."""
    failures: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Why the last load on a node failed, by node. Not compared: no decision depends on it, only a message."""

    @property
    def ref(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"


def parse_gating_model(body: Body, installation: Installation) -> GatingModel:
    """Parses a ``ModelWeights``.

    Nodes don't wait for one that no Job would load: it has no gate, is suspended, being deleted or not accepted, or is
    larger than any node may hold.

    Raises:
        InvalidModelWeights: The object can't be read; no node waits for it then.
    """
    weights = parse_model_weights(body)
    gate, current = weights.spec.placement.gate, weights.current_revision
    taints = installation.gate.taints_of(gate) if _can_become_warm(weights, installation) else frozenset()
    seconds = units.parse_duration(gate.timeout) if gate else 0.0
    conditions = {each.type: each for each in weights.status.conditions or ()}
    resolved = conditions.get("Resolved")
    return GatingModel(
        namespace=weights.namespace,
        name=weights.name,
        uid=weights.uid,
        placement=weights.spec.placement,
        taints=taints,
        timeout=min(seconds, installation.gate.max_seconds),
        key=EntryKey(weights.key(current.revision, installation), weights.medium(installation)) if current else None,
        problem="" if current else resolved.reason if resolved else "NotResolved",
        failures={each.node: each.reason for each in weights.status.failures or () if not each.pod},
    )


def _can_become_warm(weights: ModelWeights, installation: Installation) -> bool:
    if weights.deleting or weights.spec.suspend or weights.spec.cache.delivery is not Delivery.HOST_PATH:
        return False
    accepted = [each for each in weights.status.conditions or () if each.type == "Accepted"]
    if any(each.status is ConditionStatus.FALSE for each in accepted):
        return False
    current, medium = weights.current_revision, weights.medium(installation)
    return not (current and find_size_problem(current.total_bytes, installation.limits(medium), medium))
