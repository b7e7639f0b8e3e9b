"""The immutable input of a decision about one node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tonnage_operator.domain import naming

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from tonnage import contract
    from tonnage_operator.api.modelweights import Medium, Retention
    from tonnage_operator.api.nodecache import EntryKey, NodeCacheStatus
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.nodecache.capacity import LoadRequest
    from tonnage_operator.domain.observed.job import Job
    from tonnage_operator.domain.observed.node import Node
    from tonnage_operator.domain.observed.pod import Pod


@dataclass(frozen=True)
class ModelReferences:
    """The entries that a ``ModelWeights`` refers to."""

    ref: str
    deleting: bool
    entries: frozenset[EntryKey]
    retention: Retention
    is_valid: bool = True
    """False: this release can't parse the object, so entries that name it are kept."""
    cross_namespace: bool = False
    """Pods in other namespaces may use it."""
    released: frozenset[EntryKey] = frozenset()
    """The entries that it referred to until a change or its deletion, whether or not the node's record shows that."""

    def covers(self, key: EntryKey, namespace: str) -> bool:
        """Returns whether pods in a namespace may have loaded an entry for this object.

        It is the object's, or one of the same name that the pods' namespace has to itself.
        """
        if not self.cross_namespace and self.ref.partition("/")[0] != namespace:
            return False
        name = naming.entry_of(key.cache_key)
        if key.cache_key != naming.cache_key(name, namespace):
            return key in self.entries
        return any((naming.entry_of(each.cache_key), each.medium) == (name, key.medium) for each in self.entries)


@dataclass(frozen=True)
class NodeSnapshot:
    """The part of the cluster's state that concerns one node."""

    now: datetime
    installation: Installation
    node: Node
    uid: str
    """Uid of its NodeCache; empty if there is none."""
    status: NodeCacheStatus
    references: Sequence[ModelReferences] = ()
    """Objects that refer to entries that are or may be on the node, and objects that are being deleted."""
    jobs: Sequence[Job] = ()
    """Load and cleanup Jobs of this node, from ``job_results.effective_job``."""
    pods: Mapping[str, Pod] = field(default_factory=dict)
    """The latest pod of each Job, by the Job's uid."""
    consumers: Sequence[Pod] = ()
    """Users' pods on this node."""
    pending_entries: frozenset[EntryKey] = frozenset()
    """Entries held by pods that are not scheduled yet."""
    group_entries: Mapping[EntryKey, float] = field(default_factory=dict)
    """Entries that groups of pods keep, with the seconds for which they do; infinite while a group has pods."""
    reported_outcomes: Mapping[tuple[str, str], contract.Outcome] = field(default_factory=dict)
    """Outcomes of loads in users' pods that were reported since this process started, by pod uid and entry name."""
    reported_media: Mapping[Medium, contract.Medium] = field(default_factory=dict)
    """The node's media, as loaders reported them since this process started."""
    load_requests: Sequence[LoadRequest] = ()
    """Loads that objects want to begin, as far as they have asked since this process started."""
    reported_sizes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Exact bytes of entries that loaders asked room for since this process started, by pod uid and entry name."""
