"""Indexed informer stores of every kind that the controller reads."""

from __future__ import annotations

import functools
import time
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryState, NodeCacheStatus
from tonnage_operator.controller.group_entries import GroupEntries
from tonnage_operator.controller.peer_directory import PeerDirectory
from tonnage_operator.controller.reference_index import ReferenceIndex
from tonnage_operator.domain.installation import PeerNetwork
from tonnage_operator.domain.modelweights.snapshot import Snapshot
from tonnage_operator.domain.nodecache.artifacts import artifacts_by_object
from tonnage_operator.domain.nodecache.index import CacheIndex
from tonnage_operator.domain.nodecache.snapshot import NodeSnapshot
from tonnage_operator.domain.observed import job_results
from tonnage_operator.domain.observed.job import Job, parse_job
from tonnage_operator.domain.observed.model_weights import InvalidModelWeights, ModelWeights, parse_model_weights
from tonnage_operator.domain.observed.node import Node, parse_node
from tonnage_operator.domain.observed.pod import Pod, parse_pod
from tonnage_operator.kube.resources import JOBS, MODEL_WEIGHTS, NODE_CACHES, NODES, PODS
from tonnage_operator.kube.store import EventHandler, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from tonnage import contract
    from tonnage_operator.api.base import Body
    from tonnage_operator.api.nodecache import EntryKey
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.nodecache.capacity import LoadRequest, Shortage
    from tonnage_operator.kube.resources import Resource


MAX_SPEC_BYTES: Final = 192 << 10
"""Bytes of a spec as JSON; a plan is smaller. It bounds what one object takes of the controller's memory."""

_MAX_CREATED_JOBS: Final = 20_000
"""Jobs that are remembered: some megabytes."""


@dataclass(frozen=True)
class WeightsRecord:
    """A ``ModelWeights`` with the metadata that writes need; ``weights`` is None if the spec is invalid."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    finalizers: tuple[str, ...]
    deleting: bool
    generation: int
    weights: ModelWeights | None
    spec_error: str
    """Why the spec is invalid, as the message of the conditions; empty if it is valid."""
    invalid_spec_reported: bool = False
    """Whether its conditions have ``spec_error`` as their message already."""
    raw_status: dict[str, Any] = field(default_factory=dict)
    """The status of an object with an invalid spec, unchanged; empty if the spec is valid."""

    @property
    def ref(self) -> str:
        return f"{self.namespace}/{self.name}"


def parse_weights_record(body: dict[str, Any]) -> WeightsRecord:
    """Parses a ``ModelWeights``. An invalid spec is no error; see ``WeightsRecord.spec_error``."""
    metadata = body["metadata"]
    weights, spec_error = None, ""
    try:
        size = len(msgspec.json.encode(body.get("spec")))
        if size > MAX_SPEC_BYTES:
            raise InvalidModelWeights(f"it has {size} bytes, and at most {MAX_SPEC_BYTES} are read")
        weights = parse_model_weights(body)
    except InvalidModelWeights as error:
        spec_error = f"This operator can't read the spec: {error}. Are operator and CRD of one release?"
    messages = [each.get("message") for each in (body.get("status") or {}).get("conditions") or ()]
    return WeightsRecord(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        finalizers=tuple(metadata.get("finalizers") or ()),
        deleting="deletionTimestamp" in metadata,
        generation=metadata.get("generation", 0),
        weights=weights,
        spec_error=spec_error,
        invalid_spec_reported=messages.count(spec_error) >= 2,
        raw_status=(body.get("status") or {}) if spec_error else {},
    )


@dataclass(frozen=True)
class CacheRecord:
    """A ``NodeCache`` with the metadata that writes need."""

    name: str
    uid: str
    resource_version: str
    hostname: str
    status: NodeCacheStatus


def parse_cache_record(body: dict[str, Any]) -> CacheRecord:
    metadata = body["metadata"]
    return CacheRecord(
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        hostname=(metadata.get("labels") or {}).get(names.HOSTNAME_LABEL, ""),
        status=NodeCacheStatus.model_validate(body.get("status") or {}),
    )


def _is_of_job(pod: Pod, job: Job) -> bool:
    """Returns whether a pod was made from a Job's template: owner references and labels are whatever its author wrote.

    A user who may create pods in the Job's namespace can copy the signature.
    """
    return pod.namespace == job.namespace and pod.signature == job.signature


class Index:
    """Uids by keys of the object, updated as an event handler of a store."""

    def __init__(self, index_func: Callable[[Any], Iterable[str]]) -> None:
        self._index_func = index_func
        self._uids: dict[str, set[str]] = defaultdict(set)

    def update(self, before: Any, after: Any) -> None:  # noqa: ANN401 - the type of the store's objects
        for key in self._index_func(before) if before else ():
            self._uids[key].discard(before.uid)
            if not self._uids[key]:
                del self._uids[key]
        for key in self._index_func(after) if after else ():
            self._uids[key].add(after.uid)

    def __getitem__(self, key: str) -> tuple[str, ...]:
        return tuple(sorted(self._uids.get(key, ())))


class ControllerState:
    """The controller's observed state; it makes no decisions."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.weights = Store(parse_weights_record)
        self.nodes = Store(parse_node)
        self.jobs = Store(lambda body: parse_job(body, self.installation.signing))
        self.pods = Store(lambda body: parse_pod(body, self.installation.signing))
        self.node_caches = Store(parse_cache_record)
        self.cache_index = CacheIndex()
        """The entries of ``node_caches``."""
        self.references = ReferenceIndex(installation)
        on_host = installation.peers.network is PeerNetwork.HOST_PORT
        self.peers = PeerDirectory(installation.namespace, on_host=on_host, port=installation.peers.port)
        self.reports: dict[str, contract.Report] = {}
        """The latest report of each Job, by its uid."""
        self._created_jobs: OrderedDict[tuple[str, str], tuple[str, str]] = OrderedDict()
        """Uid and time of signing of the latest Job that this process has created, by namespace and name."""
        self.refusals: dict[str, str] = {}
        """Why the API server rejected the pod of a Job, by the Job's uid."""
        self.reported_outcomes: dict[str, dict[str, contract.Outcome]] = defaultdict(dict)
        """Outcomes that injected loaders reported, by the pod's uid and the entry's name."""
        self.reported_media: dict[str, dict[Medium, contract.Medium]] = defaultdict(dict)
        self.reported_sizes: dict[str, dict[str, int]] = defaultdict(dict)
        """Exact bytes of entries for which loaders asked for room, by the pod's uid and the entry's name."""
        self.load_requests: dict[str, dict[str, LoadRequest]] = defaultdict(dict)
        """Loads that objects want to begin, by node and by the object's uid."""
        self.shortages: dict[str, Mapping[EntryKey, Shortage]] = {}
        """Loads for which a node has no room, by node."""
        self._jobs_of_model = Index(lambda job: (job.model_uid,) if job.model_uid else ())
        self._jobs_of_node = Index(lambda job: (job.node_name,) if job.node_name else ())
        self._pods_of_job = Index(lambda pod: (pod.job_uid,) if pod.job_uid else ())
        self._pods_of_model = Index(lambda pod: {entry.uid for entry in pod.held_entries})
        self._pods_of_node = Index(lambda pod: (pod.node,) if pod.held_entries and pod.node else ())
        self._pending_pods = Index(
            lambda pod: ("",) if pod.held_entries and not pod.node and not pod.is_terminal else ()
        )
        self._pods_of_admission = Index(lambda pod: (pod.admission,) if pod.admission else ())
        self._node_by_name: dict[str, Node] = {}
        self._cache_by_name: dict[str, CacheRecord] = {}
        self._group_entries = GroupEntries(time.monotonic)
        self.pods.add_event_handler(self._group_entries.update)
        for index in (self._jobs_of_model, self._jobs_of_node):
            self.jobs.add_event_handler(index.update)
        indexes = (self._pods_of_job, self._pods_of_model, self._pods_of_node, self._pending_pods)
        for index in (*indexes, self._pods_of_admission):
            self.pods.add_event_handler(index.update)
        self.weights.add_event_handler(self._weights_changed)
        self.nodes.add_event_handler(self._node_changed)
        self.node_caches.add_event_handler(self._cache_changed)
        self.jobs.add_event_handler(self._job_changed)
        self.pods.add_event_handler(self._pod_changed)
        self.pods.add_event_handler(self.peers.pod_changed)

    def add_event_handlers(
        self,
        *,
        weights: EventHandler[WeightsRecord],
        nodes: EventHandler[Node],
        jobs: EventHandler[Job],
        pods: EventHandler[Pod],
        node_caches: EventHandler[CacheRecord],
    ) -> None:
        """Adds one event handler for each kind. They run after the indexes above, and may look things up in them."""
        self.weights.add_event_handler(weights)
        self.nodes.add_event_handler(nodes)
        self.jobs.add_event_handler(jobs)
        self.pods.add_event_handler(pods)
        self.node_caches.add_event_handler(node_caches)

    def record_created_job(self, body: Body) -> None:
        """Stores a Job that this process has created, and remembers it: another one of this name may be a copy."""
        metadata = body["metadata"]
        signed_at = (metadata.get("annotations") or {}).get(names.SIGNED_AT, "")
        self._created_jobs[metadata["namespace"], metadata["name"]] = (metadata["uid"], signed_at)
        if len(self._created_jobs) > _MAX_CREATED_JOBS:
            self._created_jobs.popitem(last=False)
        self.jobs.put(body)

    def _is_copy(self, job: Job) -> bool:
        """Returns whether a Job has a signature that is no later than that of one which this process has created.

        One that was signed later was created by another controller: only controllers can sign.
        """
        uid, signed_at = self._created_jobs.get((job.namespace, job.name), (job.uid, ""))
        return job.uid != uid and job.signed_at <= signed_at

    def _weights_changed(self, before: WeightsRecord | None, after: WeightsRecord | None) -> None:
        if after and after.weights:
            self.references.put(after.uid, after.weights)
        elif after:
            self.references.put_unreadable(after.uid, after.ref, deleting=after.deleting)
        elif before:
            self.references.drop(before.uid)

    def _node_changed(self, before: Node | None, after: Node | None) -> None:
        if after:
            self._node_by_name[after.name] = after
        elif before and self._node_by_name.get(before.name) == before:
            del self._node_by_name[before.name]
            self.reported_media.pop(before.name, None)
            self.shortages.pop(before.name, None)

    def _cache_changed(self, before: CacheRecord | None, after: CacheRecord | None) -> None:
        if after:
            self._cache_by_name[after.name] = after
            self.cache_index.put(after.name, after.status)
        elif before and self._cache_by_name.get(before.name) == before:
            del self._cache_by_name[before.name]
            self.cache_index.drop(before.name)

    def _job_changed(self, before: Job | None, after: Job | None) -> None:
        if after is None and before:
            self.reports.pop(before.uid, None)
            self.refusals.pop(before.uid, None)

    def _pod_changed(self, before: Pod | None, after: Pod | None) -> None:
        if after is None and before:
            self.reported_outcomes.pop(before.uid, None)
            self.reported_sizes.pop(before.uid, None)

    def store_for(self, resource: Resource) -> Store[Any]:
        """Returns the store of one of the watched kinds."""
        stores: dict[Resource, Store[Any]] = {
            MODEL_WEIGHTS: self.weights,
            NODE_CACHES: self.node_caches,
            NODES: self.nodes,
            JOBS: self.jobs,
            PODS: self.pods,
        }
        return stores[resource]

    def set_load_requests(self, uid: str, requests: Mapping[str, LoadRequest]) -> set[str]:
        """Replaces an object's requests for room; returns the nodes for which they changed.

        A request that is made again keeps its time, which decides who gets room first.
        """
        changed = set()
        for node in {*requests, *(name for name, known in self.load_requests.items() if uid in known)}:
            before, after = self.load_requests[node].get(uid), requests.get(node)
            if before and after:
                after = replace(after, since=before.since) if before.key == after.key else after
            if before == after:
                continue
            changed.add(node)
            if after:
                self.load_requests[node][uid] = after
            else:
                self.load_requests[node].pop(uid, None)
            if not self.load_requests[node]:
                del self.load_requests[node]
        return changed

    def set_shortages(self, node: str, shortages: Mapping[EntryKey, Shortage]) -> set[str]:
        """Replaces the loads for which a node has no room; returns the uids of the objects for which they changed."""
        before = self.shortages.get(node, {})
        if shortages:
            self.shortages[node] = shortages
        else:
            self.shortages.pop(node, None)
        keys = {key for key in {*before, *shortages} if before.get(key) != shortages.get(key)}
        return {uid for uid, request in self.load_requests.get(node, {}).items() if request.key in keys}

    def node(self, name: str) -> Node | None:
        return self._node_by_name.get(name)

    def zone(self, node: str) -> str:
        """Returns a node's zone; empty: not known."""
        found = self._node_by_name.get(node)
        return found.labels.get(names.ZONE_LABEL, "") if found else ""

    def node_cache(self, name: str) -> CacheRecord | None:
        return self._cache_by_name.get(name)

    def _jobs(self, uids: Iterable[str]) -> list[Job]:
        return [job for uid in uids if (job := self.jobs.get(uid))]

    def _pods(self, uids: Iterable[str]) -> list[Pod]:
        return [pod for uid in uids if (pod := self.pods.get(uid))]

    def _pods_of_jobs(self, jobs: Iterable[Job]) -> dict[str, Pod]:
        found = {}
        for job in jobs:
            if pods := [pod for pod in self._pods(self._pods_of_job[job.uid]) if _is_of_job(pod, job)]:
                # A Job starts one pod, so a later one with its owner reference is not the Job's.
                found[job.uid] = min(pods, key=lambda pod: (pod.created, pod.uid))
        return found

    def job_of(self, pod: Pod) -> Job | None:
        """Returns the Job that created a pod, if the Job is ours."""
        job = self.jobs.get(pod.job_uid)
        return job if job and self.is_ours(job) and self._pods_of_jobs((job,)).get(job.uid) == pod else None

    def is_admitted(self, pod: Pod) -> bool:
        """Returns whether the held entries of a pod count.

        Its annotations can be copied to other pods of its namespace: those of one admission count for the first pod.
        """
        pods = self._pods(self._pods_of_admission[pod.admission])
        return bool(pods) and min(pods, key=lambda each: (each.created, each.uid)).uid == pod.uid

    def _has_admitted(self, uid: str) -> bool:
        pod = self.pods.get(uid)
        return pod is not None and self.is_admitted(pod)

    def _consumers(self, uids: Iterable[str]) -> list[Pod]:
        return [pod for pod in self._pods(uids) if self.is_admitted(pod)]

    def is_ours(self, job: Job) -> bool:
        """Returns whether a Job counts. Its labels and annotations prove nothing: anyone can write them.

        The operator has signed it. A resolve or load Job is in the namespace of its object, which owns it. A cleanup
        Job on a node is in the operator's namespace.
        """
        if not job.signature or self._is_copy(job):
            return False
        if job.role == names.ROLE_CLEANUP and job.namespace == self.installation.namespace:
            return True
        record = self.weights.get(job.model_uid)
        return record is not None and (job.namespace, job.owner_uid) == (record.namespace, record.uid)

    def jobs_on(self, node: str) -> list[Job]:
        return [job for job in self._jobs(self._jobs_of_node[node]) if self.is_ours(job)]

    def snapshot(self, record: WeightsRecord, weights: ModelWeights, now: datetime) -> Snapshot:
        """Returns the input of the decision about one object."""
        jobs = [job for job in self._jobs(self._jobs_of_model[record.uid]) if self.is_ours(job)]
        pods = self._pods_of_jobs(jobs)
        return Snapshot(
            now=now,
            installation=self.installation,
            weights=weights,
            nodes=self._node_by_name,
            cache_index=self.cache_index,
            jobs=[job_results.effective_job(job, pods.get(job.uid), now) for job in jobs],
            pods=pods,
            consumers=self._consumers(self._pods_of_model[record.uid]),
            shared_entries=self._shared_entries(weights),
            reports=self.reports,
            shortages=self.shortages,
            refusals=self.refusals,
            peer_nodes=self.peers.ring,
            asking_nodes=functools.partial(self.peers.asking, now=time.monotonic()),
        )

    def has_whole_entry(self, node: str, key: EntryKey) -> bool:
        """Returns whether a node's record shows a complete entry that the node's latest boot still has."""
        entry = self.cache_index.entry(node, *key)
        if entry is None or entry.state is not EntryState.READY or entry.ranks:
            return False
        cache, known = self.cache_index.get(node), self._node_by_name.get(node)
        if cache is None or known is None:
            return False
        return key.medium is not Medium.MEMORY or cache.boot_id == (known.boot_id or None)

    def _shared_entries(self, weights: ModelWeights) -> frozenset[str]:
        """Returns the entries of the object's claim to which other objects refer."""
        claim = weights.claim_ref
        if not any(claim):
            return frozenset()
        others = [each.weights for each in self.weights if each.weights and each.uid != weights.uid]
        return frozenset().union(*(each.claim_entries() for each in others if each.claim_ref == claim))

    def node_snapshot(self, node: Node, now: datetime) -> NodeSnapshot:
        """Returns the input of the decision about one node."""
        cache = self.node_cache(node.name)
        status = cache.status if cache else NodeCacheStatus()
        jobs = self.jobs_on(node.name)
        pods = self._pods_of_jobs(jobs)
        consumers = self._consumers(self._pods_of_node[node.name])
        keys: set[EntryKey] = {entry.entry_key for entry in status.entries or ()}
        keys |= {job.entry_key for job in jobs}
        keys |= {held.entry_key for pod in consumers for held in pod.held_entries}
        requests = tuple(self.load_requests.get(node.name, {}).values())
        keys |= {request.key for request in requests}
        pending = self._consumers(self._pending_pods[""])
        grouped = self._group_entries.remaining(keys, self._has_admitted)
        loaders = [*consumers, *pods.values()]
        return NodeSnapshot(
            now=now,
            installation=self.installation,
            node=node,
            uid=cache.uid if cache else "",
            status=status,
            references=self.references.for_keys(keys, artifacts_by_object(status.entries or (), consumers)),
            jobs=[job_results.effective_job(job, pods.get(job.uid), now) for job in jobs],
            pods=pods,
            consumers=consumers,
            pending_entries=frozenset(held.entry_key for pod in pending for held in pod.held_entries),
            group_entries=grouped,
            reported_outcomes={
                (pod.uid, entry): outcome
                for pod in consumers
                for entry, outcome in self.reported_outcomes.get(pod.uid, {}).items()
            },
            reported_media=self.reported_media.get(node.name, {}),
            load_requests=requests,
            reported_sizes={
                (pod.uid, entry): size
                for pod in loaders
                for entry, size in self.reported_sizes.get(pod.uid, {}).items()
            },
        )
