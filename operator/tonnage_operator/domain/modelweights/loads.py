"""Decides which load Jobs a ``ModelWeights`` needs, and counts its nodes by state."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tonnage.contract.sizes import human_bytes
from tonnage.errors import Reason
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Delivery, Medium
from tonnage_operator.api.nodecache import EntryKey, EntryState
from tonnage_operator.api.placement import PrewarmMode
from tonnage_operator.domain.conditions import MESSAGE_LIMIT, Event
from tonnage_operator.domain.modelweights.load_targets import (
    NextLoads,
    TargetScan,
    classify_target,
    completion_event,
    completion_events,
    count_holders,
    plan_next_loads,
    slowest_progress,
    wrong_peer_events,
)
from tonnage_operator.domain.modelweights.node_selection import desired_nodes
from tonnage_operator.domain.modelweights.pvc import plan_claim_cleanup
from tonnage_operator.domain.modelweights.rollout import NodeRevisions, max_unavailable, may_switch
from tonnage_operator.domain.node_matching import matches
from tonnage_operator.domain.nodecache.capacity import find_size_problem
from tonnage_operator.domain.observed.job import JobState, latest_attempts
from tonnage_operator.domain.reasons import EventReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tonnage_operator.api.base import Body
    from tonnage_operator.api.status import LoadProgress, NodeFailure, SeenRevision
    from tonnage_operator.domain.modelweights.revisions import Resolution
    from tonnage_operator.domain.modelweights.snapshot import Snapshot
    from tonnage_operator.domain.nodecache.capacity import LoadRequest
    from tonnage_operator.domain.observed.job import Job


@dataclass
class LoadDecision:
    """State of the nodes (or of the claim), and the Jobs to create and delete."""

    desired: tuple[str, ...] = ()
    warm: int = 0
    """Number of desired nodes that have the revision in use."""
    warm_anywhere: int = 0
    """Number of nodes that have it, desired or not."""
    loading: int = 0
    holders: int = 0
    """Number of nodes that feed others; 0 without peers."""
    matching: int = 0
    """Number of nodes that match the placement, schedulable or not."""
    failures: tuple[NodeFailure, ...] = ()
    backing_off: int = 0
    progress: LoadProgress | None = None
    nodes: NodeRevisions = field(default_factory=NodeRevisions)
    """Which desired nodes have the newest revision, and the one that it replaces."""
    may_switch: bool = False
    """New pods may get the revision that is rolled out."""
    too_large: str = ""
    """Why no node may ever hold the revision, as a sentence; empty if nodes may."""
    requests: Mapping[str, LoadRequest] = field(default_factory=dict)
    """Room that has to be reserved, by node."""
    waiting: Mapping[str, str] = field(default_factory=dict)
    """Nodes that have no room, and why."""
    apply: tuple[Body, ...] = ()
    delete: tuple[Job, ...] = ()
    events: tuple[Event, ...] = ()
    completion_events: tuple[Event, ...] = ()
    """For nodes that became warm."""
    requeue_after: float | None = None


def decide_loads(snapshot: Snapshot, resolution: Resolution) -> LoadDecision:
    """Returns the load Jobs to create and delete, and the counts for the status."""
    weights, revisions = snapshot.weights, resolution.revisions
    load_jobs = [job for job in snapshot.jobs if job.role == names.ROLE_LOAD]
    in_use = revisions.resolved if resolution.is_current else None
    goal = resolution.target or in_use
    if goal is None or (resolution.problem and resolution.problem.reason == Reason.DIGEST_MISMATCH):
        return LoadDecision(delete=_deletable(snapshot, load_jobs, set()))
    if weights.spec.cache.delivery is Delivery.CLAIM:
        return _decide_claim_load(snapshot, goal, resolution, load_jobs)
    if weights.spec.cache.delivery is Delivery.EMPTY_DIR:
        return LoadDecision(delete=tuple(job for job in load_jobs if not job.deleting), may_switch=True)
    return _decide_node_loads(snapshot, goal, in_use or goal, load_jobs)


def _decide_node_loads(
    snapshot: Snapshot, goal: SeenRevision, in_use: SeenRevision, load_jobs: Sequence[Job]
) -> LoadDecision:
    weights, medium = snapshot.weights, snapshot.weights.medium(snapshot.installation)
    key, used_key = (
        weights.key(goal.revision, snapshot.installation),
        weights.key(in_use.revision, snapshot.installation),
    )
    warm = snapshot.warm_nodes(key, medium)
    used = warm if used_key == key else snapshot.warm_nodes(used_key, medium)
    jobs = latest_attempts(
        (job for job in load_jobs if job.key == key and job.medium == medium.value and not job.deleting),
        key=lambda job: job.target,
    )
    busy = {node for node, job in jobs.items() if job.state is JobState.ACTIVE}
    spec, prewarm = weights.spec.placement, snapshot.installation.prewarm
    matching = [node for node in snapshot.nodes.values() if matches(spec, node, prewarm)]
    desired = desired_nodes(spec, matching, snapshot.installation, seed=weights.uid, warm=warm, loading=busy)
    terminating = {job.target for job in load_jobs if job.deleting}
    scan = TargetScan()
    for node in desired:
        job = jobs.get(node.name)
        if job and medium is Medium.MEMORY and job.boot_id != node.boot_id:
            job = None  # from an earlier boot: its entry no longer exists
        if node.name in warm:
            scan.ready += 1
            continue
        entry = snapshot.entry(node.name, key, medium)
        if (entry and entry.state is EntryState.EVICTING) or node.name in terminating:
            continue  # wait for the eviction before reloading
        classify_target(snapshot, goal, scan, node, job)
    # A node that was cordoned during a load may finish: discarding the bytes would gain nothing.
    wanted = {node.name for node in desired}
    for name, job in jobs.items():
        node_now = snapshot.nodes.get(name)
        if name in wanted or node_now is None or job.state is not JobState.ACTIVE:
            continue
        if spec.prewarm is not PrewarmMode.NONE and matches(spec, node_now, prewarm):
            scan.kept_job_uids.add(job.uid)
            scan.active.append(job)
    scan.holders = count_holders(snapshot, EntryKey(key, medium), warm, scan.active)
    too_large = find_size_problem(goal.total_bytes, snapshot.installation.limits(medium), medium)
    next_loads = NextLoads() if too_large else plan_next_loads(snapshot, goal, scan)
    nodes = NodeRevisions(
        desired=frozenset(wanted),
        updated=warm & wanted,
        replaced=used & wanted if used_key != key else _have_previous(snapshot, goal) & wanted,
    )
    done = [job for job in load_jobs if job.target in warm and _has_loaded(job, key)]
    return LoadDecision(
        desired=tuple(node.name for node in desired),
        warm=sum(node.name in used for node in desired),
        warm_anywhere=len(used),
        loading=len(scan.active) + scan.awaiting_record,
        holders=scan.holders,
        matching=len(matching),
        failures=tuple(sorted(scan.failures, key=lambda each: (each.time, each.node), reverse=True)),
        backing_off=len(scan.retry_delays),
        progress=slowest_progress(snapshot, goal, scan.active),
        nodes=nodes,
        may_switch=not too_large and may_switch(nodes, max_unavailable(weights.spec.revision.rollout, len(desired))),
        too_large=too_large,
        requests=next_loads.requests,
        waiting=next_loads.waiting,
        apply=next_loads.jobs,
        delete=_deletable(snapshot, load_jobs, scan.kept_job_uids),
        events=(*_load_started_events(goal, scan, next_loads), *_waiting_events(goal, next_loads.waiting)),
        completion_events=(*completion_events(snapshot, goal, done), *wrong_peer_events(snapshot, done)),
        requeue_after=min(scan.retry_delays, default=None),
    )


def _have_previous(snapshot: Snapshot, in_use: SeenRevision) -> frozenset[str]:
    """Returns the nodes that still have the revision that a rollout to the one in use replaces."""
    weights, rollout = snapshot.weights, snapshot.weights.status.rollout
    if rollout is None or rollout.revision != in_use.revision:
        return frozenset()
    key = weights.key(rollout.previous, snapshot.installation)
    return snapshot.warm_nodes(key, weights.medium(snapshot.installation))


MAX_WAITING_EVENTS = 5
"""Nodes without room that have an event; the condition Warm shows how many there are."""


def _waiting_events(goal: SeenRevision, waiting: Mapping[str, str]) -> tuple[Event, ...]:
    return tuple(
        Event(EventReason.WAITING_FOR_SPACE, message[:MESSAGE_LIMIT], key=f"{node} {goal.revision}", warning=True)
        for node, message in sorted(waiting.items())[:MAX_WAITING_EVENTS]
    )


def _load_started_events(goal: SeenRevision, scan: TargetScan, next_loads: NextLoads) -> tuple[Event, ...]:
    if not next_loads.jobs or not scan.first_attempts or scan.active or scan.ready:
        return ()
    size = human_bytes(goal.total_bytes, "column")
    return (
        Event(
            EventReason.LOAD_STARTED,
            f"Loading {goal.revision} ({size}) on {len(scan.first_attempts)} nodes.",
            key=goal.revision,
        ),
    )


def _has_loaded(job: Job, key: str) -> bool:
    return job.key == key and job.state is JobState.SUCCEEDED


def _deletable(snapshot: Snapshot, mine: Iterable[Job], keep: set[str]) -> tuple[Job, ...]:
    """Returns the Jobs that are no longer needed and whose entries, if any, are recorded."""
    return tuple(job for job in mine if job.uid not in keep and not job.deleting and snapshot.is_recorded(job))


def _decide_claim_load(
    snapshot: Snapshot, goal: SeenRevision, resolution: Resolution, load_jobs: Sequence[Job]
) -> LoadDecision:
    """Plans the load into a claim and cleanups there. Finished Jobs are the record: see ``pvc``."""
    weights, medium = snapshot.weights, Medium.DISK
    used = resolution.revisions.resolved or goal
    claim_cleanup = plan_claim_cleanup(snapshot, (goal, used, resolution.target))
    key, used_key = (weights.key(seen.revision, snapshot.installation) for seen in (goal, used))
    decision = LoadDecision(
        delete=claim_cleanup.delete, apply=claim_cleanup.apply, requeue_after=claim_cleanup.requeue_after
    )
    if weights.spec.placement.prewarm is PrewarmMode.NONE:
        decision.delete += tuple(
            job for job in load_jobs if not job.deleting and job.uid not in claim_cleanup.kept_job_uids
        )
        decision.may_switch = True
        return decision
    target = f"{names.CLAIM_PREFIX}{weights.spec.cache.claim_name}"
    matching = [job for job in load_jobs if job.target == target and job.medium == medium.value and not job.deleting]
    job = max((job for job in matching if job.key == key), key=lambda job: job.attempt, default=None)
    scan = TargetScan(kept_job_uids=set(claim_cleanup.kept_job_uids))
    done = job is not None and job.state is JobState.SUCCEEDED
    if done and job:
        scan.kept_job_uids.add(job.uid)
    elif key not in claim_cleanup.keys_being_emptied:
        classify_target(snapshot, goal, scan, None, job)
    scan.kept_job_uids.update(each.uid for each in matching if _has_loaded(each, used_key))
    warm = any(_has_loaded(each, used_key) for each in matching)
    return replace(
        decision,
        desired=(target,),
        warm=int(warm),
        warm_anywhere=int(warm),
        loading=len(scan.active),
        matching=1,
        failures=tuple(scan.failures),
        backing_off=len(scan.retry_delays),
        progress=slowest_progress(snapshot, goal, scan.active),
        nodes=NodeRevisions(
            desired=frozenset({target}),
            updated=frozenset({target} if done else ()),
            replaced=frozenset({target} if used_key != key and warm else ()),
        ),
        may_switch=done,
        apply=(*decision.apply, *plan_next_loads(snapshot, goal, scan).jobs),
        delete=(
            *decision.delete,
            *(each for each in load_jobs if each.uid not in scan.kept_job_uids and not each.deleting),
        ),
        # The Job is kept, so the previous status shows whether the event was posted.
        completion_events=(completion_event(snapshot, goal, job),) if done and job and not _was_warm(snapshot) else (),
        requeue_after=min(
            [*scan.retry_delays, *([decision.requeue_after] if decision.requeue_after else [])], default=None
        ),
    )


def _was_warm(snapshot: Snapshot) -> bool:
    nodes = snapshot.weights.status.nodes
    return nodes is not None and nodes.warm > 0
