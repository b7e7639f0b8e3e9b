"""The immutable input of a decision about one ``ModelWeights``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryState
from tonnage_operator.domain import units
from tonnage_operator.domain.nodecache.index import CacheIndex
from tonnage_operator.domain.observed import job_results
from tonnage_operator.domain.reasons import FailureReason
from tonnage_operator.domain.retry import retry_delay, retry_time

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence
    from datetime import datetime

    from tonnage import contract
    from tonnage_operator.api.base import Body
    from tonnage_operator.api.nodecache import CacheEntry, EntryKey
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.nodecache.capacity import Shortage
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


_REFUSAL_LIMIT = 600
"""Characters of an API server's refusal that are quoted."""


def _describe_suspension(job: Job) -> str:
    text = f"Job {job.namespace}/{job.name} is suspended"
    if job.queue:
        return (
            f"{text}: it waits for the queue {job.queue} of Kueue. `kubectl describe workloads -n {job.namespace}` "
            "shows why it isn't admitted."
        )
    return (
        f"{text}, which the operator never does: a queue such as Kueue suspends Jobs without a queue name. The chart's "
        f"value loader.jobs.labels can name one ({names.KUEUE_QUEUE}), or the queue can be configured to leave Jobs "
        f"with the label {names.MANAGED_BY}={names.MANAGER} alone."
    )


def _describe_refusal(job: Job, refusal: str) -> str:
    name = f"Job {job.namespace}/{job.name}"
    if not refusal:
        return (
            f"{name} has no pod: its ServiceAccount is missing, or a quota or the namespace's pod security forbids it. "
            "`kubectl describe job` shows the cause."
        )
    text = f"The API server rejects the pod of {name}: {refusal[:_REFUSAL_LIMIT].rstrip('.')}."
    if "PodSecurity" in refusal or "hostPath" in refusal:
        text += " Where host paths are forbidden, set spec.cache.delivery to EmptyDir or PersistentVolumeClaim."
    elif "limits" in refusal or "quota" in refusal:
        text += " Set spec.loader.resources, or raise the namespace's quota."
    return text


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
    shortages: Mapping[str, Mapping[EntryKey, Shortage]] = field(default_factory=dict)
    """Loads for which a node has no room, by node, as far as it has been asked since this process started."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Why the API server rejected the pod of a Job, by the Job's uid, as far as it is known."""
    peer_nodes: Container[str] = ()
    """Nodes with a ready peer; empty without peers."""
    asking_nodes: Callable[[EntryKey], Container[str]] = field(default=lambda _key: ())
    """Returns the nodes whose loaders have lately asked for peers of an entry. A restart forgets them."""

    @property
    def timestamp(self) -> str:
        """``now`` as RFC 3339."""
        return units.format_time(self.now)

    def retry_delay(self, job: Job) -> float:
        """See ``retry.retry_delay``. A new value of the annotation ``tonnage.dev/retry`` ends the wait."""
        return 0.0 if self._must_retry(job) else retry_delay(job, self.installation, self.now)

    def next_attempt_time(self, job: Job) -> str:
        """Returns when a failed Job is retried, in RFC 3339; empty: now, or not while the object is suspended."""
        at = retry_time(job, self.installation)
        waits = at is not None and at > self.now and not self._must_retry(job) and not self.weights.spec.suspend
        return units.format_time(at) if at and waits else ""

    def _must_retry(self, job: Job) -> bool:
        return bool(self.weights.retry) and job.retry != self.weights.retry

    def start_failure(self, job: Job) -> job_results.Failure | None:
        """Returns why a running Job's loader can't start, or None if there is no problem."""
        pod = self.pods.get(job.uid)
        if job.suspended and pod is None:
            return job_results.Failure(FailureReason.JOB_SUSPENDED, _describe_suspension(job))
        if pod is None and self.seconds_without_pod(job) >= POD_CREATION_TIMEOUT:
            refusal = self.refusals.get(job.uid, "")
            return job_results.Failure(FailureReason.POD_NOT_CREATED, _describe_refusal(job, refusal))
        if pod and pod.required_volumes and self.seconds_waiting_for_mounts(job) >= VOLUME_MOUNT_TIMEOUT:
            return job_results.Failure(
                FailureReason.CONTAINER_NOT_STARTED,
                f"The loader's container hasn't been created. It needs {' and '.join(pod.required_volumes)}: "
                f"`kubectl describe pod -n {pod.namespace} {pod.name}` shows whether something is missing.",
            )
        return job_results.pod_start_failure(pod)

    def must_be_replaced(self, job: Job, build: Callable[[], Body]) -> bool:
        """Returns whether a running Job's loader can't start, and spec or values have changed what it needs to start.

        Args:
            job: The Job.
            build: Returns the Job that would be created now.
        """
        if not job.template or self.weights.spec.suspend or self.start_failure(job) is None:
            return False
        return bool(job.template != build()["metadata"]["annotations"][names.TEMPLATE])

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
