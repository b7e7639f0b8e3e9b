"""The immutable input of a decision about one ``ModelWeights``."""

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
"""Seconds after which a started Job without a pod is reported as ``PodNotCreated``."""

VOLUME_MOUNT_TIMEOUT = 60.0
"""Seconds after which a pod without a container is assumed to wait for a ConfigMap or Secret that it mounts.

Pulling an image looks the same and may take as long, so the message doesn't claim a cause.
"""


@dataclass(frozen=True)
class Snapshot:
    """The part of the cluster's state that concerns one ``ModelWeights``."""

    now: datetime
    installation: Installation
    weights: ModelWeights
    nodes: Mapping[str, Node] = field(default_factory=dict)
    cache_index: CacheIndex = field(default_factory=CacheIndex)
    jobs: Sequence[Job] = ()
    """The object's Jobs in any state, from ``job_results.effective_job``."""
    pods: Mapping[str, Pod] = field(default_factory=dict)
    """The latest pod of each Job, by the Job's uid."""
    consumers: Sequence[Pod] = ()
    """Users' pods that were admitted with this object."""
    shared_entries: frozenset[str] = frozenset()
    """Entries that other objects refer to in the same claim."""
    reports: Mapping[str, contract.Report] = field(default_factory=dict)
    """The latest report of each Job, by the Job's uid. A restart loses them, so decisions must work without."""

    @property
    def timestamp(self) -> str:
        """``now`` as RFC 3339."""
        return units.format_time(self.now)

    def retry_delay(self, job: Job) -> float:
        """See ``retry.retry_delay``."""
        return retry_delay(job, self.installation, self.now)

    def start_failure(self, job: Job) -> job_results.Failure | None:
        """Returns why a running Job's loader can't start, or None if there is no problem."""
        pod = self.pods.get(job.uid)
        if pod is None and self.seconds_without_pod(job) >= POD_CREATION_TIMEOUT:
            return job_results.Failure(
                FailureReason.POD_NOT_CREATED,
                f"Job {job.namespace}/{job.name} has no pod: its ServiceAccount is missing, or a quota or the "
                "namespace's pod security forbids it. `kubectl describe job` shows the cause.",
            )
        if pod and pod.required_volumes and self.seconds_waiting_for_mounts(job) >= VOLUME_MOUNT_TIMEOUT:
            return job_results.Failure(
                FailureReason.CONTAINER_NOT_STARTED,
                f"The loader's container hasn't been created. It needs {' and '.join(pod.required_volumes)}: "
                f"`kubectl describe pod -n {pod.namespace} {pod.name}` shows whether something is missing.",
            )
        return job_results.pod_start_failure(pod)

    def seconds_without_pod(self, job: Job) -> float:
        """Returns the seconds since the start of a Job that has no pod; -1 for other Jobs."""
        if job.uid in self.pods or job.finished_time or job.deleting or not job.start_time:
            return -1.0
        return (self.now - units.parse_time(job.start_time)).total_seconds()

    def seconds_waiting_for_mounts(self, job: Job) -> float:
        """Returns the seconds that a Job's pod has been waiting on its node for its volumes; -1 for other Jobs."""
        pod = self.pods.get(job.uid)
        if pod is None or not pod.creating_since or not pod.required_volumes or job.finished_time or job.deleting:
            return -1.0
        return (self.now - units.parse_time(pod.creating_since)).total_seconds()

    def entry(self, node: str, key: str, medium: Medium) -> CacheEntry | None:
        """Returns the record of an entry on a node, in any state."""
        return self.cache_index.entry(node, key, medium)

    def warm_nodes(self, key: str, medium: Medium) -> frozenset[str]:
        """Returns the names of the nodes where the entry is ready, has all ranks, and survived the last boot."""
        return frozenset(
            name
            for name, entry in self.cache_index.nodes_with(key, medium).items()
            if entry.state is EntryState.READY
            and not entry.ranks
            and name in self.nodes
            and self._survived(name, medium)
        )

    def _survived(self, name: str, medium: Medium) -> bool:
        """Returns whether the node's record is from its current boot, which matters for memory only."""
        cache = self.cache_index.get(name)
        return medium is not Medium.MEMORY or (
            cache is not None and cache.boot_id == (self.nodes[name].boot_id or None)
        )

    def is_recorded(self, job: Job) -> bool:
        """Returns whether a load Job's entry, if any, is recorded in the NodeCache, so that it will be evicted."""
        if job.target not in self.nodes or not job.medium:
            return True  # the node was deleted, or the entry is not on a node
        return self.entry(job.target, job.key, Medium(job.medium)) is not None
