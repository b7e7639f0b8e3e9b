"""Which load Jobs a ``ModelWeights`` needs, node by node, and how far they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tonnage.errors import Reason
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Delivery, Medium
from tonnage_operator.api.nodecache import EntryState
from tonnage_operator.api.placement import PrewarmMode
from tonnage_operator.api.status import LoadProgress, NodeFailure
from tonnage_operator.domain import identity, outcomes, placement, units
from tonnage_operator.domain.conditions import Event
from tonnage_operator.domain.facts import JobState
from tonnage_operator.domain.jobs import CLAIM_PREFIX, load_job
from tonnage_operator.domain.reasons import EventReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tonnage import contract
    from tonnage_operator.api.status import SeenRevision
    from tonnage_operator.domain.facts import Job, Node
    from tonnage_operator.domain.resolving import Resolution
    from tonnage_operator.domain.world import World


@dataclass
class Load:
    """How far the nodes are, and what to do for them."""

    desired: tuple[str, ...] = ()
    warm: int = 0
    """Desired nodes that have the revision in use."""
    anywhere: int = 0
    """Nodes that have it, desired or not."""
    loading: int = 0
    matching: int = 0
    """Nodes that the placement names, in whatever state."""
    failures: tuple[NodeFailure, ...] = ()
    backing_off: int = 0
    progress: LoadProgress | None = None
    staged_complete: bool = False
    apply: tuple[dict[str, Any], ...] = ()
    delete: tuple[Job, ...] = ()
    events: tuple[Event, ...] = ()
    completions: tuple[Event, ...] = ()
    """Of nodes that became warm."""
    wake_after: float | None = None


@dataclass
class _Tally:
    """What is found on the way through the nodes."""

    failures: list[NodeFailure] = field(default_factory=list)
    active: list[Job] = field(default_factory=list)
    recording: int = 0
    fresh: list[Node | None] = field(default_factory=list)
    again: list[tuple[Node | None, int]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    keep: set[str] = field(default_factory=set)
    ready: int = 0
    """Desired targets that have the goal."""


def plan_loads(world: World, resolution: Resolution) -> Load:
    """Returns the load Jobs that should be there, and the counts of the status."""
    weights, revisions = world.weights, resolution.revisions
    mine = [job for job in world.jobs if job.role == names.ROLE_LOAD]
    in_use = revisions.resolved if resolution.current else None
    goal = revisions.available if resolution.staged else in_use
    if goal is None or (resolution.problem and resolution.problem.reason == Reason.DIGEST_MISMATCH):
        return Load(delete=_deletable(world, mine, set()))
    if weights.spec.cache.delivery is not Delivery.HOST_PATH:
        return _plan_claim(world, goal, mine) if weights.spec.cache.delivery is Delivery.CLAIM else _nothing(mine)
    return _plan_nodes(world, goal, in_use or goal, mine)


def _nothing(mine: Sequence[Job]) -> Load:
    return Load(delete=tuple(job for job in mine if not job.deleting), staged_complete=True)


def _plan_nodes(world: World, goal: SeenRevision, in_use: SeenRevision, mine: Sequence[Job]) -> Load:
    weights, medium = world.weights, world.weights.medium(world.installation)
    key, used_key = weights.key(goal.revision, world.installation), weights.key(in_use.revision, world.installation)
    warm = world.warm_nodes(key, medium)
    used = warm if used_key == key else world.warm_nodes(used_key, medium)
    jobs = _latest(job for job in mine if job.key == key and job.medium == medium.value and not job.deleting)
    busy = {node for node, job in jobs.items() if job.state is JobState.ACTIVE}
    spec = weights.spec.placement
    matching = [node for node in world.nodes.values() if placement.matches(spec, node)]
    desired = placement.desired_nodes(spec, matching, seed=weights.uid, warm=warm, busy=busy)
    leaving = {job.node for job in mine if job.deleting}
    tally = _Tally()
    for node in desired:
        job = jobs.get(node.name)
        if job and medium is Medium.MEMORY and job.boot_id != node.boot_id:
            job = None  # of an earlier boot: what it did is gone
        if node.name in warm:
            tally.ready += 1
            continue
        entry = world.entry(node.name, key, medium)
        if (entry and entry.state is EntryState.EVICTING) or node.name in leaving:
            continue  # first out, then in again
        _sort_in(world, tally, node, job)
    # A node that was cordoned while it loads may finish; nobody is helped by throwing the bytes away.
    wanted = {node.name for node in desired}
    for name, job in jobs.items():
        node_now = world.nodes.get(name)
        if name in wanted or node_now is None or job.state is not JobState.ACTIVE:
            continue
        if spec.prewarm is not PrewarmMode.NONE and placement.matches(spec, node_now):
            tally.keep.add(job.uid)
            tally.active.append(job)
    tried = {failure.node for failure in tally.failures}
    return Load(
        desired=tuple(node.name for node in desired),
        warm=sum(node.name in used for node in desired),
        anywhere=len(used),
        loading=len(tally.active) + tally.recording,
        matching=len(matching),
        failures=tuple(sorted(tally.failures, key=lambda each: (each.time, each.node), reverse=True)),
        backing_off=len(tally.waits),
        progress=_slowest(world, goal, tally.active),
        staged_complete=not desired or (tally.ready > 0 and tally.ready + len(tried) >= len(desired)),
        apply=_start(world, goal, tally),
        delete=_deletable(world, mine, tally.keep),
        events=_begun(world, goal, tally),
        completions=_completed(world, goal, [job for job in mine if job.node in warm and _done(job, key)]),
        wake_after=min(tally.waits, default=None),
    )


def _begun(world: World, goal: SeenRevision, tally: _Tally) -> tuple[Event, ...]:
    if world.weights.spec.suspend or not tally.fresh or tally.active or tally.ready:
        return ()
    size = units.human_bytes(goal.total_bytes)
    return (
        Event(
            EventReason.LOAD_STARTED,
            f"Loading {goal.revision} ({size}) on {len(tally.fresh)} nodes.",
            key=goal.revision,
        ),
    )


def _done(job: Job, key: str) -> bool:
    return job.key == key and job.state is JobState.SUCCEEDED


def _latest(found: Iterable[Job]) -> dict[str, Job]:
    """Returns the Job with the highest attempt for each node."""
    latest: dict[str, Job] = {}
    for job in found:
        if job.node not in latest or latest[job.node].attempt < job.attempt:
            latest[job.node] = job
    return latest


def _sort_in(world: World, tally: _Tally, node: Node | None, job: Job | None) -> None:
    """Says what a target that isn't warm needs next."""
    if job is None:
        tally.fresh.append(node)
        return
    tally.keep.add(job.uid)
    pod = world.pods.get(job.uid)
    if job.state is JobState.SUCCEEDED:
        tally.recording += 1
    elif job.state is JobState.ACTIVE:
        tally.active.append(job)
        if waiting := world.waiting(job):
            since = pod.created if pod else job.started or world.time
            tally.failures.append(_failure(job, waiting, since))
        else:
            before = [each for each in world.weights.status.failures or () if each.node == job.node]
            tally.failures.extend(before if job.attempt > 1 else ())
    else:
        tally.failures.append(_failure(job, outcomes.failure_of(job, pod), job.finished or world.time))
        wait = world.due(job)
        if wait > 0:
            tally.waits.append(wait)
        else:
            tally.again.append((node, job.attempt + 1))


def _failure(job: Job, failure: outcomes.Failure, time: str) -> NodeFailure:
    return NodeFailure(node=job.node, reason=failure.reason, message=failure.message, attempts=job.attempt, time=time)


def _start(world: World, goal: SeenRevision, tally: _Tally) -> tuple[dict[str, Any], ...]:
    """Returns the Jobs to start now: nodes that never failed first, as many as may load at once."""
    weights = world.weights
    if weights.spec.suspend:
        return ()
    room = max(0, weights.spec.placement.max_concurrent_nodes - len(tally.active))
    candidates = [*((node, 1) for node in tally.fresh), *tally.again][:room]
    return tuple(
        load_job(weights, goal, world.installation, node=node, attempt=attempt) for node, attempt in candidates
    )


def _deletable(world: World, mine: Iterable[Job], keep: set[str]) -> tuple[Job, ...]:
    """Returns the Jobs that nobody needs and whose bytes, if any, are on record."""
    return tuple(job for job in mine if job.uid not in keep and not job.deleting and world.is_recorded(job))


def _slowest(world: World, goal: SeenRevision, active: Sequence[Job]) -> LoadProgress | None:
    if not active:
        return None
    reported = [(job, report) for job in active if (report := world.reports.get(job.uid)) and report.progress]
    if not reported:
        node = min(job.node for job in active)
        return LoadProgress(node=node, percent=-1, total_bytes=goal.total_bytes)
    return min((_progress(job, report) for job, report in reported), key=_hurry)


def _hurry(progress: LoadProgress) -> tuple[float, int, str]:
    left = progress.remaining_seconds
    return (-left if left >= 0 else float("-inf"), progress.percent, progress.node)


def _progress(job: Job, report: contract.Report) -> LoadProgress:
    now = report.progress
    total = now.total_bytes if now else 0
    loaded = now.loaded_bytes if now else 0
    remaining = round(now.remaining_seconds) if now else -1
    return LoadProgress(
        node=job.node,
        percent=min(100, loaded * 100 // total) if total else -1,
        loaded_bytes=loaded,
        total_bytes=total,
        bytes_per_second=round(now.bytes_per_second) if now else 0,
        remaining_seconds=remaining,
        eta=units.human_seconds(remaining),
    )


MANY = 5
"""Nodes that are told of one by one when they become warm together; more of them share one event."""


def _completed(world: World, goal: SeenRevision, done: Sequence[Job]) -> tuple[Event, ...]:
    if len(done) <= MANY:
        return tuple(_completed_one(world, goal, job) for job in done)
    nodes = sorted(job.node for job in done)
    named = f"{', '.join(nodes[:MANY])} and {len(nodes) - MANY} more nodes"
    reports = [report for job in done if (report := outcomes.last_words(world.pods.get(job.uid)))]
    told = f", the slowest in {max(report.seconds for report in reports):.1f} s" if reports else ""
    key = identity.digest(sorted(job.uid for job in done))
    return (Event(EventReason.LOAD_COMPLETED, f"{named} have {goal.revision}{told}.", key=key),)


def _completed_one(world: World, goal: SeenRevision, job: Job) -> Event:
    report = outcomes.last_words(world.pods.get(job.uid))
    told = ""
    if report and report.seconds > 0 and report.downloaded_bytes:
        rate = units.human_bytes(round(report.downloaded_bytes / report.seconds))
        told = f": {units.human_bytes(report.downloaded_bytes)} in {report.seconds:.1f} s, {rate}/s"
    return Event(EventReason.LOAD_COMPLETED, f"{job.node} has {goal.revision}{told}.", key=job.uid)


def _was_warm(world: World) -> bool:
    nodes = world.weights.status.nodes
    return nodes is not None and nodes.warm > 0


def _plan_claim(world: World, goal: SeenRevision, mine: Sequence[Job]) -> Load:
    """Plans the one load into a claim. Its Job stays when it is done: it is the only record."""
    weights, medium = world.weights, Medium.DISK
    if weights.spec.placement.prewarm is PrewarmMode.NONE:
        return _nothing(mine)
    target = f"{CLAIM_PREFIX}{weights.spec.cache.claim_name}"
    key = weights.key(goal.revision, world.installation)
    used = weights.status.resolved
    used_key = weights.key(used.revision, world.installation) if used else key
    matching = [job for job in mine if job.node == target and job.medium == medium.value and not job.deleting]
    job = _latest(job for job in matching if job.key == key).get(target)
    tally = _Tally()
    done = job is not None and job.state is JobState.SUCCEEDED
    if done and job:
        tally.keep.add(job.uid)
    else:
        _sort_in(world, tally, None, job)
    tally.keep.update(each.uid for each in matching if each.key == used_key and _done(each, used_key) and not done)
    warm = any(_done(each, used_key) for each in matching) or (done and used is None)
    return Load(
        desired=(target,),
        warm=int(warm or (done and key == used_key)),
        anywhere=int(warm),
        loading=len(tally.active),
        matching=1,
        failures=tuple(tally.failures),
        backing_off=len(tally.waits),
        progress=_slowest(world, goal, tally.active),
        staged_complete=done,
        apply=_start(world, goal, tally),
        delete=tuple(each for each in mine if each.uid not in tally.keep and not each.deleting),
        # The Job stays, so the status says whether this was told.
        completions=(_completed_one(world, goal, job),) if done and job and not _was_warm(world) else (),
        wake_after=min(tally.waits, default=None),
    )
