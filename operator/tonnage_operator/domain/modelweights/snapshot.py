"""All that a decision about one ``ModelWeights`` looks at, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryState
from tonnage_operator.domain import units
from tonnage_operator.domain.nodecache.index import CacheIndex
from tonnage_operator.domain.observed import job_results
from tonnage_operator.domain.reasons import FailureReason
from tonnage_operator.domain.retry import retry_delay

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from tonnage import contract
    from tonnage_operator.api.nodecache import CacheEntry
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.observed.job import Job
    from tonnage_operator.domain.observed.model_weights import ModelWeights
    from tonnage_operator.domain.observed.node import Node
    from tonnage_operator.domain.observed.pod import Pod


POD_CREATION_TIMEOUT = 15.0
"""Seconds after which a Job that Kubernetes looks after, and that has no pod, is taken for one that gets none."""

VOLUME_MOUNT_TIMEOUT = 60.0
"""Seconds after which a pod that mounts a ConfigMap or a Secret, and has no container, is taken for one that lacks it.
Pulling an image looks the same from here and may take as long, so what is said is a question."""


@dataclass(frozen=True)
class Snapshot:
    """A moment, as one object sees it."""

    now: datetime
    installation: Installation
    weights: ModelWeights
    nodes: Mapping[str, Node] = field(default_factory=dict)
    cache_index: CacheIndex = field(default_factory=CacheIndex)
    jobs: Sequence[Job] = ()
    """Those of this object, in any state, as ``job_results.effective_job`` has them."""
    pods: Mapping[str, Pod] = field(default_factory=dict)
    """The latest pod of each Job, by the Job's uid."""
    consumers: Sequence[Pod] = ()
    """Pods of users that were admitted with this object."""
    shared_entries: frozenset[str] = frozenset()
    """Entries that other objects refer to in the same claim."""
    reports: Mapping[str, contract.Report] = field(default_factory=dict)
    """The latest report of each Job, by the Job's uid. A restart loses them, and that must not matter."""

    @property
    def timestamp(self) -> str:
        """Now, as Kubernetes writes it."""
        return units.format_time(self.now)

    def retry_delay(self, job: Job) -> float:
        """See ``retry.retry_delay``."""
        return retry_delay(job, self.installation, self.now)

    def start_failure(self, job: Job) -> job_results.Failure | None:
        """Returns why a running Job's loader can't start, or None while nothing is wrong."""
        pod = self.pods.get(job.uid)
        if pod is None and self.seconds_without_pod(job) >= POD_CREATION_TIMEOUT:
            return job_results.Failure(
                FailureReason.POD_NOT_CREATED,
                f"Job {job.namespace}/{job.name} has no pod: its ServiceAccount is missing, or a quota or the "
                "namespace's pod security forbids it. `kubectl describe job` on it says which.",
            )
        if pod and pod.required_volumes and self.seconds_waiting_for_mounts(job) >= VOLUME_MOUNT_TIMEOUT:
            return job_results.Failure(
                FailureReason.CONTAINER_NOT_STARTED,
                f"The loader's container isn't made yet. It needs {' and '.join(pod.required_volumes)}: is that there? "
                f"`kubectl describe pod -n {pod.namespace} {pod.name}` says what it waits for.",
            )
        return job_results.pod_start_failure(pod)

    def seconds_without_pod(self, job: Job) -> float:
        """Returns the seconds since Kubernetes looked after a Job that has no pod; -1 for all others."""
        if job.uid in self.pods or job.finished_time or job.deleting or not job.start_time:
            return -1.0
        return (self.now - units.parse_time(job.start_time)).total_seconds()

    def seconds_waiting_for_mounts(self, job: Job) -> float:
        """Returns the seconds for which a Job's pod has been waiting on its node for what it mounts; -1 for others."""
        pod = self.pods.get(job.uid)
        if pod is None or not pod.creating_since or not pod.required_volumes or job.finished_time or job.deleting:
            return -1.0
        return (self.now - units.parse_time(pod.creating_since)).total_seconds()

    def entry(self, node: str, key: str, medium: Medium) -> CacheEntry | None:
        """Returns the record of an entry on a node, whatever its state is."""
        return self.cache_index.entry(node, key, medium)

    def warm_nodes(self, key: str, medium: Medium) -> frozenset[str]:
        """Returns the names of the nodes that have the entry ready, with all ranks, in their present boot."""
        return frozenset(
            name
            for name, entry in self.cache_index.nodes_with(key, medium).items()
            if entry.state is EntryState.READY
            and not entry.ranks
            and name in self.nodes
            and self._survived(name, medium)
        )

    def _survived(self, name: str, medium: Medium) -> bool:
        """Returns whether what is on record of a node is of its present boot, where that matters."""
        cache = self.cache_index.get(name)
        return medium is not Medium.MEMORY or (
            cache is not None and cache.boot_id == (self.nodes[name].boot_id or None)
        )

    def is_recorded(self, job: Job) -> bool:
        """Returns whether the bytes that a load Job may have written are on record, to be removed one day."""
        if job.target not in self.nodes or not job.medium:
            return True  # the node is gone, or nothing lies on one
        return self.entry(job.target, job.key, Medium(job.medium)) is not None
