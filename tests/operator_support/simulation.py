"""In-memory cluster that applies decisions immediately, without an API server.

Tests advance the clock and finish the Jobs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from operator_support import objects
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.api.nodecache import NodeCacheStatus
from tonnage_operator.domain.modelweights.deletion import Deletion, plan_deletion
from tonnage_operator.domain.modelweights.reconcile import Decision, decide
from tonnage_operator.domain.modelweights.snapshot import Snapshot
from tonnage_operator.domain.nodecache.index import CacheIndex
from tonnage_operator.domain.nodecache.reconcile import NodeDecision, decide_node
from tonnage_operator.domain.nodecache.snapshot import ModelReferences, NodeSnapshot
from tonnage_operator.domain.observed import job_results
from tonnage_operator.domain.observed.held_entries import HeldEntry
from tonnage_operator.domain.observed.job import Job, parse_job
from tonnage_operator.domain.observed.model_weights import ModelWeights, parse_model_weights
from tonnage_operator.domain.observed.node import Node, parse_node
from tonnage_operator.domain.observed.pod import LoaderStatus, Pod, TerminatedState
from tonnage_operator.domain.units import format_time

if TYPE_CHECKING:
    from tonnage_operator.domain.installation import Installation


@dataclass
class Simulation:
    """One ``ModelWeights`` and some nodes."""

    spec: dict[str, Any] = field(default_factory=dict)
    node_bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    installation: Installation = objects.INSTALLATION
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    status: dict[str, Any] = field(default_factory=dict)
    deleting: bool = False
    gone: bool = False
    """The object's finalizer was removed, so nothing knows it any more."""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    reports: dict[str, contract.Report] = field(default_factory=dict)
    caches: dict[str, NodeCacheStatus] = field(default_factory=dict)
    consumers: list[Pod] = field(default_factory=list)
    shared_entries: frozenset[str] = frozenset()
    events: list[str] = field(default_factory=list)
    posted_events: set[str] = field(default_factory=set)
    started_jobs: list[str] = field(default_factory=list)

    def add_nodes(self, *node_names: str, **more: Any) -> None:
        for name in node_names:
            self.node_bodies[name] = objects.node(name, **more)

    @property
    def weights(self) -> ModelWeights:
        more = {"deletionTimestamp": "now"} if self.deleting else {}
        return parse_model_weights(objects.modelweights_manifest(self.spec, status=copy.deepcopy(self.status), **more))

    @property
    def nodes(self) -> dict[str, Node]:
        return {name: parse_node(body) for name, body in self.node_bodies.items()}

    def snapshot(self) -> Snapshot:
        """Returns the input of the decision for the object."""
        return Snapshot(
            now=self.now,
            installation=self.installation,
            weights=self.weights,
            nodes=self.nodes,
            cache_index=CacheIndex(self.caches),
            jobs=[job for job in self._effective_jobs() if job.model_uid == objects.UID],
            pods=self.pods,
            consumers=self.consumers,
            shared_entries=self.shared_entries,
            reports=self.reports,
        )

    def step(self) -> Decision:
        """Makes one decision for the object, applies it, and reconciles all nodes."""
        decision = decide(self.snapshot())
        self._apply(decision.apply)
        for event in (*decision.events, *decision.deferred_events):
            name = event.name("llama", objects.UID)
            if name not in self.posted_events:
                self.posted_events.add(name)
                self.events.append(event.reason)
        self.status = decision.status.model_dump(mode="json", by_alias=True, exclude_none=True)
        for job in (*decision.delete, *decision.deferred_deletes):
            self.jobs.pop(job.name, None)
        self.sync_nodes()
        return decision

    def converge(self) -> Decision:
        """Steps until nothing changes, and returns the last decision."""
        for _ in range(50):
            previous = (copy.deepcopy(self.status), set(self.jobs), dict(self.caches))
            decision = self.step()
            if previous == (self.status, set(self.jobs), self.caches):
                return decision
        raise AssertionError("did not converge in 50 steps")

    def step_deletion(self) -> Deletion:
        """Makes one decision for the object's deletion and applies it."""
        self.deleting = True
        decision = plan_deletion(self.snapshot())
        self._apply(decision.apply)
        self.events += [event.reason for event in decision.events]
        for job in decision.delete:
            self.jobs.pop(job.name, None)
        self.sync_nodes()
        return decision

    def sync_nodes(self) -> None:
        """Reconciles each node's NodeCache once."""
        for name in self.node_bodies:
            decision = self.node_decision(name)
            if decision.status is not None:
                self.caches[name] = decision.status
            self._apply(decision.apply)
            for job in decision.delete:
                self.jobs.pop(job.name, None)

    def node_decision(self, name: str) -> NodeDecision:
        """Returns the decision for a node."""
        weights = self.weights
        return decide_node(
            NodeSnapshot(
                now=self.now,
                installation=self.installation,
                node=self.nodes[name],
                uid="cache-uid" if name in self.caches else "",
                status=self.caches.get(name) or NodeCacheStatus(),
                references=[]
                if self.gone
                else [
                    ModelReferences(
                        weights.ref,
                        weights.deleting,
                        weights.references(self.installation),
                        weights.spec.cache.retention,
                        released=weights.released(self.installation),
                    )
                ],
                jobs=[job for job in self._effective_jobs() if job.target == name],
                pods=self.pods,
                consumers=[pod for pod in self.consumers if pod.node == name],
            )
        )

    def _effective_jobs(self) -> list[Job]:
        found = [parse_job(job, self.installation.signing) for job in self.jobs.values()]
        return [job_results.effective_job(job, self.pods.get(job.uid), self.now) for job in found]

    def _apply(self, manifests: tuple[dict[str, Any], ...]) -> None:
        for job in manifests:
            name = job["metadata"]["name"]
            if name not in self.jobs:
                self.jobs[name] = objects.stored_job(job)
                self.started_jobs.append(name)

    def active_jobs(self, role: str) -> list[dict[str, Any]]:
        """Returns the Jobs of a role that have not finished."""
        found = [job for job in self.jobs.values() if job["metadata"]["labels"][names.ROLE] == role]
        return [job for job in found if "conditions" not in job.get("status", {})]

    def job_node(self, job: dict[str, Any]) -> str:
        """Returns the name of a Job's node; empty if it has none."""
        node: str = job["metadata"]["annotations"].get(names.NODE, "")
        return node

    def finish_job(
        self, job: dict[str, Any], report: contract.Report | None = None, *, code: int = 0, reason: str = ""
    ) -> None:
        """Finishes a Job: failed if ``code`` is not 0, else complete."""
        kind = "Failed" if code else "Complete"
        when = format_time(self.now)
        job["status"] = {"conditions": [{"type": kind, "status": "True", "lastTransitionTime": when}]}
        self.pods[job["metadata"]["uid"]] = objects.terminated_pod(job, report, exit_code=code, reason=reason)

    def finish_resolve(self, version: str = "1", behavior: contract.StoreBehavior | None = None) -> None:
        """Completes the active resolve Job with this version of the source, and how its store must be asked."""
        self.converge()
        (job,) = self.active_jobs(names.ROLE_RESOLVE)
        self.reports[job["metadata"]["uid"]] = objects.resolved_report(version, behavior=behavior)
        self.finish_job(job)
        self.converge()

    def finish_loads(self, *only: str) -> None:
        """Completes active load Jobs: all, or those of the given nodes."""
        for job in self.active_jobs(names.ROLE_LOAD):
            if not only or self.job_node(job) in only:
                self.finish_job(job, contract.Report(outcome=contract.Outcome.LOADED, bytes=2 * objects.GIB))
        self.converge()

    def advance(self, seconds: float) -> None:
        """Advances the clock and converges."""
        self.now += timedelta(seconds=seconds)
        self.converge()

    def condition(self, kind: str) -> tuple[str, str]:
        """Returns (status, reason) of a condition."""
        found = next(each for each in self.status["conditions"] if each["type"] == kind)
        return found["status"], found["reason"]

    def loading_nodes(self) -> set[str]:
        """Returns the nodes with an active load Job."""
        return {self.job_node(job) for job in self.active_jobs(names.ROLE_LOAD)}


def prewarming_simulation(count: int = 4, spec: dict[str, Any] | None = None) -> Simulation:
    """Returns a simulation with ``count`` nodes and an object that prewarms all of them."""
    simulation = Simulation(objects.deep_merge({"placement": {"prewarm": "AllMatching"}}, spec or {}))
    simulation.add_nodes(*(f"n{index}" for index in range(count)))
    return simulation


def failing_pod(
    simulation: Simulation, node: str, report: contract.Report | None = None, *, exit_code: int = 24, **changes: Any
) -> Pod:
    """Returns a pod on a node whose loader has failed; ``changes`` are fields of the pod."""
    text = contract.termination_message(report or objects.failed_report("ChecksumMismatch")).decode()
    ended = TerminatedState(exit_code, "Error", "" if exit_code > 128 else text, "2026-01-01T00:00:00Z")
    loader = LoaderStatus(names.LOADER_CONTAINER, False, ended, "CrashLoopBackOff", "back-off", restarts=2)
    pod = consumer_pod(simulation, node)
    return replace(pod, phase="Pending", loaders=(loader,), **changes)


def ended_pod(simulation: Simulation, node: str, *notes: str, revision: str = "", **changes: Any) -> Pod:
    """Returns a pod on a node whose loader has ended with these notes; ``changes`` are fields of the pod."""
    revision = revision or simulation.status["resolved"]["revision"]
    report = contract.Report(
        outcome=contract.Outcome.LOADED, revision=revision, notes=notes, verified_by="CRC64NVME: 2 objects"
    )
    text = contract.termination_message(report).decode()
    ended = TerminatedState(0, "Completed", text, "2026-01-01T00:00:00Z")
    loader = LoaderStatus(names.LOADER_CONTAINER, True, ended, "", "")
    return replace(consumer_pod(simulation, node), loaders=(loader,), **changes)


def consumer_pod(simulation: Simulation, node: str, *, started: bool = True) -> Pod:
    """Returns a pod on a node, admitted with the revision in use."""
    revision = simulation.status["resolved"]["revision"]
    held_entry = HeldEntry(
        container=names.LOADER_CONTAINER,
        namespace="serving",
        name="llama",
        uid=objects.UID,
        revision=revision,
        key=revision,
        bytes=2 * objects.GIB,
    )
    return Pod(
        namespace="serving",
        name="p",
        uid="pu",
        role=names.ROLE_INJECTED,
        model_uid="",
        job_uid="",
        node=node,
        phase="Running",
        reason="",
        message="",
        created="2026-01-01T00:00:00Z",
        unschedulable_message="",
        held_entries=(held_entry,),
        loaders=(LoaderStatus(names.LOADER_CONTAINER, started, None, "", ""),),
        deleting=False,
    )
