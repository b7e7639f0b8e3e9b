"""One node with a capacity, on which loads begin only with a reservation; the loaders' bytes are counted beside it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from operator_support import objects
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium, Retention
from tonnage_operator.api.nodecache import CacheEntry, EntryKey, EntryState, NodeCacheStatus
from tonnage_operator.domain.nodecache.capacity import LoadRequest, has_room, total_bytes
from tonnage_operator.domain.nodecache.reconcile import NodeDecision, decide_node
from tonnage_operator.domain.nodecache.snapshot import ModelReferences, NodeSnapshot
from tonnage_operator.domain.observed.job import Job, JobState, parse_job
from tonnage_operator.domain.observed.node import parse_node
from tonnage_operator.domain.units import format_time

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.observed.pod import Pod

MEMORY = Medium.MEMORY
GIB = objects.GIB


def limited(**memory: Any) -> Installation:
    """Returns an installation whose medium Memory has limits, such as ``capacity="100Gi"``."""
    body = objects.INSTALLATION.model_dump(mode="json", by_alias=True, exclude_none=True)
    body["media"]["Memory"] |= {"minFree": "0", **memory}
    return type(objects.INSTALLATION).model_validate({**body, "signing": objects.KEYS})


def key_of(model: str) -> EntryKey:
    """Returns the entry of a model ``namespace/name``, which its namespace has to itself."""
    namespace, _, name = model.partition("/")
    return EntryKey(f"{namespace}/r-{name}", MEMORY)


@dataclass
class NodeModel:
    """A node, the objects that want models on it, their Jobs, and the bytes that loaders have written."""

    installation: Installation
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    boot: str = "boot-1"
    status: NodeCacheStatus = field(default_factory=NodeCacheStatus)
    references: dict[str, Retention] = field(default_factory=dict)
    deleting: set[str] = field(default_factory=set)
    requests: dict[str, LoadRequest] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    consumers: list[Pod] = field(default_factory=list)
    group_entries: dict[EntryKey, float] = field(default_factory=dict)
    on_disk: dict[EntryKey, int] = field(default_factory=dict)
    reported_media: Mapping[Medium, contract.Medium] = field(default_factory=dict)
    last: NodeDecision = field(default_factory=lambda: NodeDecision(None))

    def entry(self, model: str) -> CacheEntry | None:
        found = [each for each in self.status.entries or () if each.entry_key == key_of(model)]
        return found[0] if found else None

    def state(self, model: str) -> EntryState | None:
        entry = self.entry(model)
        return entry.state if entry else None

    @property
    def reserved(self) -> int:
        """Bytes that entries have or that are reserved."""
        return sum(map(total_bytes, self.status.entries or ()))

    @property
    def written(self) -> int:
        """Bytes on the node."""
        return sum(self.on_disk.values())

    def want(self, model: str, size: int, retention: Retention = Retention.EVICTABLE) -> None:
        """An object refers to the model, and asks for room."""
        self.now += timedelta(seconds=1)
        self.references[model] = retention
        request = LoadRequest(key_of(model), size, format_time(self.now), frozenset({model}))
        self.requests.setdefault(model, request)

    def drop(self, model: str) -> None:
        """The object is deleted, with its Jobs."""
        self.references.pop(model, None)
        self.requests.pop(model, None)
        self.jobs = {uid: job for uid, job in self.jobs.items() if job.model_ref != model}

    def reconcile(self) -> NodeDecision:
        """Makes one decision about the node, and applies it."""
        decision = decide_node(
            NodeSnapshot(
                now=self.now,
                installation=self.installation,
                node=parse_node(objects.node("n0", boot_id=self.boot)),
                uid="cache",
                status=self.status,
                references=[
                    ModelReferences(model, going, frozenset() if going else frozenset({key_of(model)}), retention)
                    for model, retention in self.references.items()
                    for going in [model in self.deleting]
                ],
                jobs=list(self.jobs.values()),
                pods=self.pods,
                consumers=self.consumers,
                group_entries=self.group_entries,
                load_requests=list(self.requests.values()),
                reported_media=self.reported_media,
            )
        )
        if decision.status is not None:
            self.status = decision.status
        for job in decision.delete:
            self.jobs.pop(job.uid)
        for body in decision.apply:
            made = parse_job(objects.stored_job(body), objects.KEYS)
            self.jobs[made.uid] = made
        self.last = decision
        return decision

    def can_begin(self, model: str) -> bool:
        """Returns whether the object's controller would create the load Job."""
        request = self.requests.get(model)
        return (
            request is not None
            and self.state(model) is not EntryState.READY
            and not self.running(model)
            and has_room(self.entry(model), request.bytes)
        )

    def running(self, model: str) -> list[Job]:
        return [
            job
            for job in self.jobs.values()
            if job.key == key_of(model).cache_key and job.role == names.ROLE_LOAD and job.state is JobState.ACTIVE
        ]

    def begin(self, model: str) -> None:
        """The load Job starts and allocates all bytes."""
        size = self.requests.pop(model).bytes
        attempt = 1 + max((job.attempt for job in self.jobs.values() if job.model_ref == model), default=0)
        uid = f"{model}-{attempt}"
        self.jobs = {
            uid: job for uid, job in self.jobs.items() if job.model_ref != model or job.role != names.ROLE_LOAD
        }
        self.jobs[uid] = Job(
            namespace=model.partition("/")[0], name=uid, uid=uid, role=names.ROLE_LOAD, model_uid=model,
            owner_uid=model, model_ref=model, key=key_of(model).cache_key, medium=MEMORY.value, target="n0", cause="",
            boot_id=self.boot, round="", attempt=attempt, state=JobState.ACTIVE, reason="", message="",
            finished_time="", start_time="", bytes=size, deleting=False,
        )  # fmt: skip
        self.on_disk[key_of(model)] = size

    def end(
        self,
        model: str,
        state: JobState,
        *,
        left: int | None = None,
        reason: str = "AccessDenied",
        medium: contract.Medium | None = None,
    ) -> None:
        """The load ends; ``left``: bytes that a failed loader reports to have left; None: it reports nothing."""
        for job in self.running(model):
            self.jobs[job.uid] = replace(job, state=state, finished_time="2025-01-01T00:00:00Z")
            if left is not None:
                self.on_disk[key_of(model)] = left
                body = {
                    "metadata": {"name": job.uid, "namespace": job.namespace, "uid": job.uid, "labels": {}},
                    "spec": {"template": {"metadata": {"annotations": {}}, "spec": {"containers": []}}},
                }
                report = contract.Report(
                    outcome=contract.Outcome.FAILED, reason=reason, message="Failed.", bytes=left, medium=medium
                )
                self.pods[job.uid] = objects.terminated_pod(body, report, exit_code=20)

    def clean(self) -> None:
        """The running cleanup Jobs succeed."""
        for uid, job in self.jobs.items():
            if job.role == names.ROLE_CLEANUP and job.state is JobState.ACTIVE:
                self.jobs[uid] = replace(job, state=JobState.SUCCEEDED, finished_time="2025-01-01T00:00:00Z")
                self.on_disk.pop(job.entry_key, None)

    def load(self, model: str, size: int, retention: Retention = Retention.EVICTABLE) -> None:
        """Loads a model for which there is room."""
        self.want(model, size, retention)
        self.reconcile()
        self.begin(model)
        self.reconcile()
        self.end(model, JobState.SUCCEEDED)
        self.reconcile()
        assert self.state(model) is EntryState.READY

    def settle(self) -> None:
        """Reconciles, and lets cleanups succeed, until nothing changes."""
        for _ in range(30):
            before = (self.status, dict(self.jobs))
            self.reconcile()
            self.clean()
            if before == (self.status, self.jobs):
                return
        raise AssertionError("did not settle in 30 steps")
