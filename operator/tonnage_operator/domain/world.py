"""All that a decision about one ``ModelWeights`` looks at, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryState
from tonnage_operator.domain import outcomes, units
from tonnage_operator.domain.caches import Caches
from tonnage_operator.domain.reasons import FailureReason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from tonnage import contract
    from tonnage_operator.api.nodecache import CacheEntry
    from tonnage_operator.domain.facts import Job, Node, Pod
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.weights import Weights


POD_PATIENCE = 15.0
"""Seconds after which a Job that Kubernetes looks after, and that has no pod, is taken for one that gets none."""

MOUNT_PATIENCE = 60.0
"""Seconds after which a pod that mounts a ConfigMap or a Secret, and has no container, is taken for one that lacks it.
Pulling an image looks the same from here and may take as long, so what is said is a question."""


@dataclass(frozen=True)
class World:
    """A moment, as one object sees it."""

    now: datetime
    installation: Installation
    weights: Weights
    nodes: Mapping[str, Node] = field(default_factory=dict)
    caches: Caches = field(default_factory=Caches)
    jobs: Sequence[Job] = ()
    """Those of this object, in any state, as ``outcomes.as_known`` has them."""
    pods: Mapping[str, Pod] = field(default_factory=dict)
    """The latest pod of each Job, by the Job's uid."""
    consumers: Sequence[Pod] = ()
    """Pods of users that were admitted with this object."""
    neighbours: frozenset[str] = frozenset()
    """Entries that other objects refer to in the same claim."""
    reports: Mapping[str, contract.Report] = field(default_factory=dict)
    """The latest report of each Job, by the Job's uid. A restart loses them, and that must not matter."""

    @property
    def time(self) -> str:
        """Now, as Kubernetes writes it."""
        return units.format_time(self.now)

    def due(self, job: Job) -> float:
        """Returns the seconds until a failed Job is tried again; 0 or less: now."""
        policy = outcomes.RetryPolicy(self.installation.retry_base, self.installation.retry_cap)
        waited = (self.now - units.parse_time(job.finished)).total_seconds() if job.finished else 0.0
        return policy.delay(job.attempt, job.name) - waited

    def waiting(self, job: Job) -> outcomes.Failure | None:
        """Returns why a running Job's loader can't start, or None while nothing is wrong."""
        pod = self.pods.get(job.uid)
        if pod is None and self.podless(job) >= POD_PATIENCE:
            return outcomes.Failure(
                FailureReason.POD_NOT_CREATED,
                f"Job {job.namespace}/{job.name} has no pod: its ServiceAccount is missing, or a quota or the "
                "namespace's pod security forbids it. `kubectl describe job` on it says which.",
            )
        if pod and pod.mounts and self.unmade(job) >= MOUNT_PATIENCE:
            return outcomes.Failure(
                FailureReason.CONTAINER_NOT_STARTED,
                f"The loader's container isn't made yet. It needs {' and '.join(pod.mounts)}: is that there? "
                f"`kubectl describe pod -n {pod.namespace} {pod.name}` says what it waits for.",
            )
        return outcomes.waiting_for(pod)

    def podless(self, job: Job) -> float:
        """Returns the seconds since Kubernetes looked after a Job that has no pod; -1 for all others."""
        if job.uid in self.pods or job.finished or job.deleting or not job.started:
            return -1.0
        return (self.now - units.parse_time(job.started)).total_seconds()

    def unmade(self, job: Job) -> float:
        """Returns the seconds for which a Job's pod has been waiting on its node for what it mounts; -1 for others."""
        pod = self.pods.get(job.uid)
        if pod is None or not pod.placed or not pod.mounts or job.finished or job.deleting:
            return -1.0
        return (self.now - units.parse_time(pod.placed)).total_seconds()

    def entry(self, node: str, key: str, medium: Medium) -> CacheEntry | None:
        """Returns the record of an entry on a node, whatever its state is."""
        return self.caches.entry(node, key, medium)

    def warm_nodes(self, key: str, medium: Medium) -> frozenset[str]:
        """Returns the names of the nodes that have the entry ready, with all ranks, in their present boot."""
        return frozenset(
            name
            for name, entry in self.caches.holders(key, medium).items()
            if entry.state is EntryState.READY
            and not entry.ranks
            and name in self.nodes
            and self._survived(name, medium)
        )

    def _survived(self, name: str, medium: Medium) -> bool:
        """Returns whether what is on record of a node is of its present boot, where that matters."""
        cache = self.caches.get(name)
        return medium is not Medium.MEMORY or (
            cache is not None and cache.boot_id == (self.nodes[name].boot_id or None)
        )

    def is_recorded(self, job: Job) -> bool:
        """Returns whether the bytes that a load Job may have written are on record, to be removed one day."""
        if job.node not in self.nodes or not job.medium:
            return True  # the node is gone, or nothing lies on one
        return self.entry(job.node, job.key, Medium(job.medium)) is not None
