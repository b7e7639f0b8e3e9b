"""The cluster as the controller knows it: local pictures of all kinds, indexed, so that a change costs little."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import NodeCacheStatus
from tonnage_operator.controller.referrers import Referrers
from tonnage_operator.domain import facts, outcomes
from tonnage_operator.domain.caches import Caches
from tonnage_operator.domain.nodecache import NodeWorld
from tonnage_operator.domain.weights import Unreadable, Weights, read_weights
from tonnage_operator.domain.world import World
from tonnage_operator.kube.reflector import Store
from tonnage_operator.kube.resources import MODEL_WEIGHTS, NODE_CACHES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from tonnage import contract
    from tonnage_operator.domain.caches import Key
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.kube.resources import Resource


@dataclass(frozen=True)
class WeightsRecord:
    """A ``ModelWeights`` with what writing it needs. ``weights`` is None when it can't be read; then ``problem`` is."""

    namespace: str
    name: str
    uid: str
    version: str
    finalizers: tuple[str, ...]
    deleting: bool
    generation: int
    weights: Weights | None
    problem: str
    """Why it can't be read: a sentence for its conditions."""
    problem_told: bool = False
    """That is what its conditions say already."""
    raw_status: dict[str, Any] = field(default_factory=dict)
    """The status of an object that can't be read, as it is."""

    @property
    def ref(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"


def weights_record(body: dict[str, Any]) -> WeightsRecord:
    """Reads an object as far as it can be read."""
    metadata = body["metadata"]
    weights, problem = None, ""
    try:
        weights = read_weights(body)
    except Unreadable as error:
        problem = f"This operator can't read the spec: {error}. Are operator and CRD of one release?"
    said = [each.get("message") for each in (body.get("status") or {}).get("conditions") or ()]
    return WeightsRecord(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        finalizers=tuple(metadata.get("finalizers") or ()),
        deleting="deletionTimestamp" in metadata,
        generation=metadata.get("generation", 0),
        weights=weights,
        problem=problem,
        problem_told=said.count(problem) >= 2,
        raw_status=(body.get("status") or {}) if problem else {},
    )


@dataclass(frozen=True)
class CacheRecord:
    """A ``NodeCache`` with what writing it needs."""

    name: str
    uid: str
    version: str
    hostname: str
    status: NodeCacheStatus


def cache_record(body: dict[str, Any]) -> CacheRecord:
    """Reads a ``NodeCache``."""
    metadata = body["metadata"]
    return CacheRecord(
        name=metadata["name"],
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        hostname=(metadata.get("labels") or {}).get(names.HOSTNAME_LABEL, ""),
        status=NodeCacheStatus.model_validate(body.get("status") or {}),
    )


class Index:
    """Uids by some key of the object, kept up to date by a store's changes."""

    def __init__(self, keys: Callable[[Any], Iterable[str]]) -> None:
        self._keys = keys
        self._uids: dict[str, set[str]] = defaultdict(set)

    def changed(self, before: Any, after: Any) -> None:  # noqa: ANN401 - of whatever kind the store is
        """Takes in one change."""
        for key in self._keys(before) if before else ():
            self._uids[key].discard(before.uid)
            if not self._uids[key]:
                del self._uids[key]
        for key in self._keys(after) if after else ():
            self._uids[key].add(after.uid)

    def __getitem__(self, key: str) -> tuple[str, ...]:
        return tuple(sorted(self._uids.get(key, ())))


class Cluster:
    """Everything that is known, and nothing that is decided."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.weights = Store(weights_record)
        self.nodes = Store(facts.node_fact)
        self.jobs = Store(facts.job_fact)
        self.pods = Store(facts.pod_fact)
        self.caches = Store(cache_record)
        self.contents = Caches()
        """What the records of ``caches`` say, to be looked up."""
        self.referrers = Referrers(installation)
        self.reports: dict[str, contract.Report] = {}
        """The latest report of each Job, by its uid."""
        self.told: dict[str, dict[str, contract.Outcome]] = defaultdict(dict)
        """How loads of pods of users ended, as reported, by the pod's uid and the entry's name."""
        self.media: dict[str, dict[Medium, contract.Medium]] = defaultdict(dict)
        self._jobs_of_model = Index(lambda job: (job.model_uid,) if job.model_uid else ())
        self._jobs_of_node = Index(lambda job: (job.host,) if job.host else ())
        self._pods_of_job = Index(lambda pod: (pod.job_uid,) if pod.job_uid else ())
        self._pods_of_model = Index(lambda pod: {claim.uid for claim in pod.claims})
        self._pods_of_node = Index(lambda pod: (pod.node,) if pod.claims and pod.node else ())
        self._pods_pending = Index(lambda pod: ("",) if pod.claims and not pod.node and not pod.over else ())
        self._node_by_name: dict[str, facts.Node] = {}
        self._cache_by_name: dict[str, CacheRecord] = {}
        for index in (self._jobs_of_model, self._jobs_of_node):
            self.jobs.listen(index.changed)
        for index in (self._pods_of_job, self._pods_of_model, self._pods_of_node, self._pods_pending):
            self.pods.listen(index.changed)
        self.weights.listen(self._weights_changed)
        self.nodes.listen(self._node_changed)
        self.caches.listen(self._cache_changed)
        self.jobs.listen(self._job_changed)
        self.pods.listen(self._pod_changed)

    def _weights_changed(self, before: WeightsRecord | None, after: WeightsRecord | None) -> None:
        if after and after.weights:
            self.referrers.put(after.uid, after.weights)
        elif after:
            self.referrers.put_unreadable(after.uid, after.ref, deleting=after.deleting)
        elif before:
            self.referrers.drop(before.uid)

    def _node_changed(self, before: facts.Node | None, after: facts.Node | None) -> None:
        if after:
            self._node_by_name[after.name] = after
        elif before and self._node_by_name.get(before.name) == before:
            del self._node_by_name[before.name]
            self.media.pop(before.name, None)

    def _cache_changed(self, before: CacheRecord | None, after: CacheRecord | None) -> None:
        if after:
            self._cache_by_name[after.name] = after
            self.contents.put(after.name, after.status)
        elif before and self._cache_by_name.get(before.name) == before:
            del self._cache_by_name[before.name]
            self.contents.drop(before.name)

    def _job_changed(self, before: facts.Job | None, after: facts.Job | None) -> None:
        if after is None and before:
            self.reports.pop(before.uid, None)

    def _pod_changed(self, before: facts.Pod | None, after: facts.Pod | None) -> None:
        if after is None and before:
            self.told.pop(before.uid, None)

    def store(self, resource: Resource) -> Store[Any]:
        """Returns the picture of the records of one kind."""
        stores: dict[Resource, Store[Any]] = {MODEL_WEIGHTS: self.weights, NODE_CACHES: self.caches}
        return stores[resource]

    def node(self, name: str) -> facts.Node | None:
        """Returns a node by name."""
        return self._node_by_name.get(name)

    def cache(self, name: str) -> CacheRecord | None:
        """Returns a node's ``NodeCache``."""
        return self._cache_by_name.get(name)

    def _jobs(self, uids: Iterable[str]) -> list[facts.Job]:
        return [job for uid in uids if (job := self.jobs.get(uid))]

    def _pods(self, uids: Iterable[str]) -> list[facts.Pod]:
        return [pod for uid in uids if (pod := self.pods.get(uid))]

    def _pods_by_job(self, jobs: Iterable[facts.Job]) -> dict[str, facts.Pod]:
        found = {}
        for job in jobs:
            # Who may create pods anywhere can name any owner in them: just those of the Job's namespace are its own.
            pods = [pod for pod in self._pods(self._pods_of_job[job.uid]) if pod.namespace == job.namespace]
            if pods:
                found[job.uid] = max(pods, key=lambda pod: (pod.created, pod.uid))
        return found

    def jobs_on(self, node: str) -> list[facts.Job]:
        """Returns the Jobs for a node."""
        return self._jobs(self._jobs_of_node[node])

    def world(self, record: WeightsRecord, weights: Weights, now: datetime) -> World:
        """Returns what a decision about one object looks at."""
        jobs = self._jobs(self._jobs_of_model[record.uid])
        pods = self._pods_by_job(jobs)
        return World(
            now=now,
            installation=self.installation,
            weights=weights,
            nodes=self._node_by_name,
            caches=self.contents,
            jobs=[outcomes.as_known(job, pods.get(job.uid), now) for job in jobs],
            pods=pods,
            consumers=self._pods(self._pods_of_model[record.uid]),
            neighbours=self._neighbours(weights),
            reports=self.reports,
        )

    def _neighbours(self, weights: Weights) -> frozenset[str]:
        """Returns the entries that other objects refer to in the object's claim."""
        claim = weights.claim
        if not any(claim):
            return frozenset()
        others = [each.weights for each in self.weights if each.weights and each.uid != weights.uid]
        return frozenset().union(*(each.claim_entries() for each in others if each.claim == claim))

    def node_world(self, node: facts.Node, now: datetime) -> NodeWorld:
        """Returns what a decision about one node looks at."""
        cache = self.cache(node.name)
        status = cache.status if cache else NodeCacheStatus()
        jobs = self.jobs_on(node.name)
        pods = self._pods_by_job(jobs)
        consumers = self._pods(self._pods_of_node[node.name])
        keys: set[Key] = {(entry.name, entry.medium) for entry in status.entries or ()}
        keys |= {(job.key, Medium(job.medium)) for job in jobs}
        keys |= {(claim.key, claim.medium) for pod in consumers for claim in pod.claims}
        pending = self._pods(self._pods_pending[""])
        return NodeWorld(
            now=now,
            installation=self.installation,
            node=node,
            uid=cache.uid if cache else "",
            status=status,
            referrers=self.referrers.of(keys),
            jobs=[outcomes.as_known(job, pods.get(job.uid), now) for job in jobs],
            pods=pods,
            consumers=consumers,
            pending=frozenset((claim.key, claim.medium) for pod in pending for claim in pod.claims),
            told={
                (pod.uid, entry): outcome for pod in consumers for entry, outcome in self.told.get(pod.uid, {}).items()
            },
            media=self.media.get(node.name, {}),
        )
