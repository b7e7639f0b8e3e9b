"""Immutable input of one decision about a node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from tonnage import contract
    from tonnage_operator.api.modelweights import Medium, Retention
    from tonnage_operator.api.nodecache import EntryKey, NodeCacheStatus
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.observed.job import Job
    from tonnage_operator.domain.observed.node import Node
    from tonnage_operator.domain.observed.pod import Pod


@dataclass(frozen=True)
class ModelReferences:
    """A ``ModelWeights``, as far as a node cares."""

    ref: str
    deleting: bool
    entries: frozenset[EntryKey]
    retention: Retention
    is_valid: bool = True
    """False: the object can't be read by this release, so what names it stays as it is."""
    cross_namespace: bool = False
    """Pods of other namespaces may use it."""

    def covers(self, key: EntryKey, namespace: str) -> bool:
        """Returns whether pods of a namespace may have loaded an entry on this object's account."""
        return key in self.entries and (self.cross_namespace or self.ref.partition("/")[0] == namespace)


@dataclass(frozen=True)
class NodeSnapshot:
    """A moment, as one node sees it."""

    now: datetime
    installation: Installation
    node: Node
    uid: str
    """Of its NodeCache; empty while there is none."""
    status: NodeCacheStatus
    references: Sequence[ModelReferences] = ()
    """Objects that refer to what is or may be here, and those that are being deleted; others don't matter."""
    jobs: Sequence[Job] = ()
    """Load and cleanup Jobs for this node, as ``job_results.effective_job`` has them."""
    pods: Mapping[str, Pod] = field(default_factory=dict)
    """The latest pod of each Job, by the Job's uid."""
    consumers: Sequence[Pod] = ()
    """Pods of users on this node."""
    pending_entries: frozenset[EntryKey] = frozenset()
    """Entries that pods without a node yet were admitted with."""
    reported_outcomes: Mapping[tuple[str, str], contract.Outcome] = field(default_factory=dict)
    """How loads of pods of users ended, as reported since this process began, by the pod's uid and the entry's name."""
    reported_media: Mapping[Medium, contract.Medium] = field(default_factory=dict)
    """What loaders reported of the node's media since this process began."""
