"""Which load Jobs a ``ModelWeights`` needs, node by node, and how far they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tonnage.errors import Reason
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Delivery, Medium
from tonnage_operator.api.nodecache import EntryState
from tonnage_operator.api.placement import PrewarmMode
from tonnage_operator.domain import placement, units
from tonnage_operator.domain.claim_volumes import rotate
from tonnage_operator.domain.conditions import Event
from tonnage_operator.domain.facts import JobState
from tonnage_operator.domain.reasons import EventReason
from tonnage_operator.domain.targets import Tally, completion, completions, latest, slowest, sort_in, start

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tonnage_operator.api.status import LoadProgress, NodeFailure, SeenRevision
    from tonnage_operator.domain.facts import Job
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


def plan_loads(world: World, resolution: Resolution) -> Load:
    """Returns the load Jobs that should be there, and the counts of the status."""
    weights, revisions = world.weights, resolution.revisions
    mine = [job for job in world.jobs if job.role == names.ROLE_LOAD]
    in_use = revisions.resolved if resolution.current else None
    goal = revisions.available if resolution.staged else in_use
    if goal is None or (resolution.problem and resolution.problem.reason == Reason.DIGEST_MISMATCH):
        return Load(delete=_deletable(world, mine, set()))
    if weights.spec.cache.delivery is Delivery.CLAIM:
        return _plan_claim(world, goal, resolution, mine)
    if weights.spec.cache.delivery is Delivery.EMPTY_DIR:
        return Load(delete=tuple(job for job in mine if not job.deleting), staged_complete=True)
    return _plan_nodes(world, goal, in_use or goal, mine)


def _plan_nodes(world: World, goal: SeenRevision, in_use: SeenRevision, mine: Sequence[Job]) -> Load:
    weights, medium = world.weights, world.weights.medium(world.installation)
    key, used_key = weights.key(goal.revision, world.installation), weights.key(in_use.revision, world.installation)
    warm = world.warm_nodes(key, medium)
    used = warm if used_key == key else world.warm_nodes(used_key, medium)
    jobs = latest(job for job in mine if job.key == key and job.medium == medium.value and not job.deleting)
    busy = {node for node, job in jobs.items() if job.state is JobState.ACTIVE}
    spec = weights.spec.placement
    matching = [node for node in world.nodes.values() if placement.matches(spec, node)]
    desired = placement.desired_nodes(spec, matching, seed=weights.uid, warm=warm, busy=busy)
    leaving = {job.node for job in mine if job.deleting}
    tally = Tally()
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
        sort_in(world, tally, node, job)
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
        progress=slowest(world, goal, tally.active),
        staged_complete=not desired or (tally.ready > 0 and tally.ready + len(tried) >= len(desired)),
        apply=start(world, goal, tally),
        delete=_deletable(world, mine, tally.keep),
        events=_begun(world, goal, tally),
        completions=completions(world, goal, [job for job in mine if job.node in warm and _done(job, key)]),
        wake_after=min(tally.waits, default=None),
    )


def _begun(world: World, goal: SeenRevision, tally: Tally) -> tuple[Event, ...]:
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


def _deletable(world: World, mine: Iterable[Job], keep: set[str]) -> tuple[Job, ...]:
    """Returns the Jobs that nobody needs and whose bytes, if any, are on record."""
    return tuple(job for job in mine if job.uid not in keep and not job.deleting and world.is_recorded(job))


def _plan_claim(world: World, goal: SeenRevision, resolution: Resolution, mine: Sequence[Job]) -> Load:
    """Plans the one load into a claim, and what is emptied there. Jobs are the record: see ``claim_volumes``."""
    weights, medium = world.weights, Medium.DISK
    used = resolution.revisions.resolved or goal
    rotation = rotate(world, (goal, used, resolution.revisions.available if resolution.staged else None))
    key, used_key = (weights.key(seen.revision, world.installation) for seen in (goal, used))
    load = Load(delete=rotation.delete, apply=rotation.apply, wake_after=rotation.wake_after)
    if weights.spec.placement.prewarm is PrewarmMode.NONE:
        load.delete += tuple(job for job in mine if not job.deleting and job.uid not in rotation.records)
        load.staged_complete = True
        return load
    target = f"{names.CLAIM_PREFIX}{weights.spec.cache.claim_name}"
    matching = [job for job in mine if job.node == target and job.medium == medium.value and not job.deleting]
    job = latest(job for job in matching if job.key == key).get(target)
    tally = Tally(keep=set(rotation.records))
    done = job is not None and job.state is JobState.SUCCEEDED
    if done and job:
        tally.keep.add(job.uid)
    elif key not in rotation.busy:
        sort_in(world, tally, None, job)
    tally.keep.update(each.uid for each in matching if _done(each, used_key))
    warm = any(_done(each, used_key) for each in matching)
    return replace(
        load,
        desired=(target,),
        warm=int(warm),
        anywhere=int(warm),
        loading=len(tally.active),
        matching=1,
        failures=tuple(tally.failures),
        backing_off=len(tally.waits),
        progress=slowest(world, goal, tally.active),
        staged_complete=done,
        apply=(*load.apply, *start(world, goal, tally)),
        delete=(*load.delete, *(each for each in mine if each.uid not in tally.keep and not each.deleting)),
        # The Job stays, so the status says whether this was told.
        completions=(completion(world, goal, job),) if done and job and not _was_warm(world) else (),
        wake_after=min([*tally.waits, *([load.wake_after] if load.wake_after else [])], default=None),
    )


def _was_warm(world: World) -> bool:
    nodes = world.weights.status.nodes
    return nodes is not None and nodes.warm > 0
