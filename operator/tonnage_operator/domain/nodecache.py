"""What lies on one node: its ``NodeCache``, and the Jobs that empty what nobody needs any more.

The record is derived from Jobs and pods, and kept in the object, since both vanish. Memory doesn't outlive a boot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tonnage.errors import Reason
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium, Retention
from tonnage_operator.api.nodecache import CacheEntry, EntryState, MediumState, NodeCacheStatus, NodeCacheSummary
from tonnage_operator.domain import conditions, outcomes, units
from tonnage_operator.domain.conditions import Observation
from tonnage_operator.domain.facts import JobState
from tonnage_operator.domain.jobs import cleanup_job
from tonnage_operator.domain.reasons import ConditionReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from tonnage import contract
    from tonnage_operator.domain.facts import Job, Node, Pod
    from tonnage_operator.domain.installation import Installation

Key = tuple[str, Medium]

GIVE_UP_AFTER = 3
"""Failed cleanups after which a deleted object is let go; the entry stays on record and is tried on."""


@dataclass(frozen=True)
class Referrer:
    """A ``ModelWeights``, as far as a node cares."""

    ref: str
    deleting: bool
    references: frozenset[Key]
    retention: Retention
    known: bool = True


@dataclass(frozen=True)
class NodeWorld:
    """A moment, as one node sees it."""

    now: datetime
    installation: Installation
    node: Node
    uid: str
    """Of its NodeCache; empty while there is none."""
    status: NodeCacheStatus
    referrers: Sequence[Referrer] = ()
    jobs: Sequence[Job] = ()
    """Load and cleanup Jobs for this node."""
    pods: Mapping[str, Pod] = field(default_factory=dict)
    """The latest pod of each Job, by the Job's uid."""
    consumers: Sequence[Pod] = ()
    """Pods of users on this node."""
    pending: frozenset[Key] = frozenset()
    """Entries that pods without a node yet were admitted with."""
    media: Mapping[Medium, contract.Medium] = field(default_factory=dict)
    """What loaders reported of the node's media since this process began."""


@dataclass(frozen=True)
class NodeDecision:
    """What to do: write the status, then apply and delete Jobs. ``status`` None: there is nothing to record."""

    status: NodeCacheStatus | None
    apply: tuple[dict[str, Any], ...] = ()
    delete: tuple[Job, ...] = ()
    wake_after: float | None = None


def decide_node(world: NodeWorld) -> NodeDecision:
    """Returns what the node's record should say, and which entries are to be emptied."""
    entries = _kept(world)
    cleanups = _latest_cleanups(world)
    entries = _cleaned(world, entries, cleanups)
    entries = _loaded(world, entries)
    entries = _used(world, entries)
    entries = _settled(world, entries)
    entries = {key: _referred(world, entry) for key, entry in entries.items()}
    entries, apply, waits = _evicted(world, entries, cleanups)
    wanted = {key for key, entry in entries.items() if entry.state is EntryState.EVICTING}
    delete = tuple(
        job
        for job in world.jobs
        if job.role == names.ROLE_CLEANUP
        and not job.deleting
        and (_key(job) not in wanted or job is not cleanups.get(_key(job)))
        and job.state is not JobState.ACTIVE
    )
    status = _status(world, entries)
    if not world.uid and not entries:
        return NodeDecision(None, delete=delete)
    return NodeDecision(status, apply, delete, min(waits, default=None))


def _key(job: Job) -> Key:
    return job.key, Medium(job.medium)


def _kept(world: NodeWorld) -> dict[Key, CacheEntry]:
    """Returns what was on record and can still be there."""
    rebooted = bool(world.status.boot_id) and world.status.boot_id != world.node.boot_id
    return {
        (entry.name, entry.medium): entry
        for entry in world.status.entries or ()
        if not (rebooted and entry.medium is Medium.MEMORY)
    }


def _latest_cleanups(world: NodeWorld) -> dict[Key, Job]:
    latest: dict[Key, Job] = {}
    for job in world.jobs:
        if job.role == names.ROLE_CLEANUP and not job.deleting and job.boot_id == world.node.boot_id:
            before = latest.get(_key(job))
            if before is None or before.attempt < job.attempt:
                latest[_key(job)] = job
    return latest


def _cleaned(world: NodeWorld, entries: dict[Key, CacheEntry], cleanups: dict[Key, Job]) -> dict[Key, CacheEntry]:
    """Drops what a cleanup Job has emptied; only what was being evicted, so that an old Job can't drop a new entry."""
    del world
    return {
        key: entry
        for key, entry in entries.items()
        if not (entry.state is EntryState.EVICTING and key in cleanups and outcomes.succeeded(cleanups[key]))
    }


def _loaded(world: NodeWorld, entries: dict[Key, CacheEntry]) -> dict[Key, CacheEntry]:
    """Adds what load Jobs did or do."""
    entries = dict(entries)
    for job in world.jobs:
        if job.role != names.ROLE_LOAD or (job.medium == Medium.MEMORY.value and job.boot_id != world.node.boot_id):
            continue
        key = _key(job)
        entry = entries.get(key) or CacheEntry(name=key[0], medium=key[1], state=EntryState.PARTIAL)
        if job.state is JobState.SUCCEEDED and entry.state in {EntryState.PARTIAL, EntryState.LOADING}:
            report = outcomes.last_words(world.pods.get(job.uid))
            entry = entry.model_copy(
                update={
                    "state": EntryState.READY,
                    "bytes": report.bytes if report else entry.bytes,
                    "verified": (report.verified if report else "") or entry.verified,
                    "revision": (report.revision if report else "") or entry.revision,
                    "last_used_time": job.finished or units.format_time(world.now),
                }
            )
        elif job.state is JobState.ACTIVE and entry.state is EntryState.PARTIAL:
            entry = entry.model_copy(update={"state": EntryState.LOADING})
        entries[key] = entry
    return entries


def _used(world: NodeWorld, entries: dict[Key, CacheEntry]) -> dict[Key, CacheEntry]:
    """Adds what pods of users hold: their loaders load, too."""
    entries = dict(entries)
    for pod in world.consumers:
        ready = {loader.name for loader in pod.loaders if loader.ready}
        for claim in pod.claims:
            key = (claim.key, claim.medium)
            if not claim.key or (pod.over and key not in entries):
                continue
            entry = entries.get(key) or CacheEntry(name=key[0], medium=key[1], state=EntryState.PARTIAL)
            if claim.container in ready and entry.state in {EntryState.PARTIAL, EntryState.LOADING}:
                entry = entry.model_copy(
                    update={
                        "state": EntryState.READY,
                        "bytes": claim.bytes or entry.bytes,
                        "ranks": claim.ranks or None,
                        "verified": claim.verify or entry.verified,
                        "revision": claim.revision,
                    }
                )
            elif not pod.over and not pod.deleting and entry.state is EntryState.PARTIAL:
                entry = entry.model_copy(update={"state": EntryState.LOADING})
            if pod.created and pod.created > (entry.last_used_time or ""):
                entry = entry.model_copy(update={"last_used_time": pod.created})
            entries[key] = entry
    return entries


def _holders(world: NodeWorld) -> set[Key]:
    """Returns the entries that pods on this node hold or are about to."""
    held = {(claim.key, claim.medium) for pod in world.consumers if not pod.over for claim in pod.claims}
    return held | set(world.pending)


def _settled(world: NodeWorld, entries: dict[Key, CacheEntry]) -> dict[Key, CacheEntry]:
    """Marks what was loading and isn't any more: its bytes are there, and the next loader resumes from them."""
    active = {_key(job) for job in world.jobs if job.role == names.ROLE_LOAD and job.state is JobState.ACTIVE}
    active |= {(claim.key, claim.medium) for pod in world.consumers if not pod.over for claim in pod.claims}
    return {
        key: entry.model_copy(update={"state": EntryState.PARTIAL})
        if entry.state is EntryState.LOADING and key not in active
        else entry
        for key, entry in entries.items()
    }


def _referred(world: NodeWorld, entry: CacheEntry) -> CacheEntry:
    """Brings the names of those who refer to the entry up to date.

    Objects that are being deleted stay named until their entry is dealt with: that holds their finalizer.
    """
    key = (entry.name, entry.medium)
    alive = {each.ref for each in world.referrers if key in each.references}
    going = {each.ref for each in world.referrers if each.deleting and each.ref in entry.models}
    # An object that wrote here but was deleted before anything was on record is still asked for by its Job.
    going |= {
        job.model_ref
        for job in world.jobs
        if job.role == names.ROLE_LOAD
        and _key(job) == key
        and any(each.deleting and each.ref == job.model_ref for each in world.referrers)
    }
    keeping = [each.retention for each in world.referrers if each.ref in alive | going]
    retention = entry.retention
    if keeping:
        retention = Retention.EVICTABLE if Retention.EVICTABLE in keeping else Retention.WHILE_REFERENCED
    models = alive or going
    return entry.model_copy(update={"models": tuple(sorted(models)), "retention": retention})


def _evicted(
    world: NodeWorld, entries: dict[Key, CacheEntry], cleanups: dict[Key, Job]
) -> tuple[dict[Key, CacheEntry], tuple[dict[str, Any], ...], list[float]]:
    """Decides which entries are emptied, and lets objects go whose entries can't be."""
    held = _holders(world)
    busy = {_key(job) for job in world.jobs if job.role == names.ROLE_LOAD and job.state is JobState.ACTIVE}
    alive = {key for each in world.referrers for key in each.references}
    kept, apply, waits = {}, [], []
    needed = alive | held | busy
    sacrificed = _sacrificed(world, entries, needed)
    for key, entry in entries.items():
        job = cleanups.get(key)
        running = job is not None and job.state is JobState.ACTIVE
        stays = entry.retention is Retention.EVICTABLE and key not in sacrificed
        if key in needed or stays:
            state = entry.state
            if state is EntryState.EVICTING and not running:
                # Nobody knows what a cleanup left that failed half-way, so the next loader looks.
                state = EntryState.PARTIAL
            let_go = key not in alive and (key in held or stays)
            models = () if let_go else entry.models
            kept[key] = entry.model_copy(update={"state": state, "models": models})
        elif key[1] not in world.installation.media or not world.node.ready:
            kept[key] = entry.model_copy(update={"models": ()})  # it is emptied when the node comes back
        else:
            kept[key], wish, wait = _evict(world, key, entry, job)
            apply.extend(wish)
            waits.extend(wait)
    return kept, tuple(apply), waits


def _sacrificed(world: NodeWorld, entries: Mapping[Key, CacheEntry], needed: set[Key]) -> set[Key]:
    """Returns the evictable entries that make room: the longest unused, for each medium that a load found full."""
    chosen: set[Key] = set()
    for medium in world.installation.media:
        ours = [(key, entry) for key, entry in entries.items() if key[1] is medium and key not in needed]
        chosen |= {key for key, entry in ours if entry.state is EntryState.EVICTING}
        full = any(
            job.role == names.ROLE_LOAD
            and job.medium == medium.value
            and job.state is JobState.FAILED
            and outcomes.failure_of(job, world.pods.get(job.uid)).reason == Reason.INSUFFICIENT_SPACE
            for job in world.jobs
        )
        spare = [(entry.last_used_time or "", key) for key, entry in ours if entry.retention is Retention.EVICTABLE]
        if full and spare and not any(entry.state is EntryState.EVICTING for _, entry in ours):
            chosen.add(min(spare)[1])
    return chosen


def _evict(
    world: NodeWorld, key: Key, entry: CacheEntry, job: Job | None
) -> tuple[CacheEntry, list[dict[str, Any]], list[float]]:
    attempt = 1
    models = entry.models
    waits: list[float] = []
    if job is not None and entry.state is EntryState.EVICTING:
        if job.state is not JobState.FAILED:
            return entry, [], []
        policy = outcomes.RetryPolicy(world.installation.retry_base, world.installation.retry_cap)
        waited = (world.now - units.parse_time(job.finished)).total_seconds() if job.finished else 0.0
        if job.attempt >= GIVE_UP_AFTER:
            models = ()
        if (rest := policy.delay(job.attempt, job.name) - waited) > 0:
            return entry.model_copy(update={"models": models}), [], [rest]
        attempt = job.attempt + 1
    evicting = entry.model_copy(update={"state": EntryState.EVICTING, "models": models})
    ref = entry.models[0] if entry.models else ""
    wish = cleanup_job(
        world.installation, key=key[0], medium=key[1], node=world.node, attempt=attempt, uid=world.uid, model_ref=ref
    )
    return evicting, [wish], waits


def _media(world: NodeWorld, entries: Iterable[CacheEntry]) -> tuple[MediumState, ...]:
    before = {state.name: state for state in world.status.media or ()}
    media = []
    for name in sorted(world.installation.media, key=lambda medium: medium.value):
        told = world.media.get(name)
        old = before.get(name) or MediumState(name=name)
        used = sum(entry.bytes for entry in entries if entry.medium is name and entry.state is EntryState.READY)
        state = old.model_copy(update={"used_bytes": used})
        if told:
            state = state.model_copy(update={"capacity_bytes": told.capacity_bytes, "free_bytes": told.free_bytes})
        media.append(state)
    return tuple(media)


_PRESSURE = 0.05
"""Share of a medium below which its free bytes are called a pressure."""


def _status(world: NodeWorld, entries: Mapping[Key, CacheEntry]) -> NodeCacheStatus:
    listed = tuple(entries[key] for key in sorted(entries, key=lambda key: (key[1].value, key[0])))
    media = _media(world, listed)
    by_name = {state.name: state for state in media}
    memory, disk = by_name.get(Medium.MEMORY), by_name.get(Medium.DISK)
    tight = [
        state.name.value
        for state in media
        if state.capacity_bytes and state.free_bytes < state.capacity_bytes * _PRESSURE
    ]
    ready = Observation("Ready", status=True, reason=ConditionReason.NODE_READY, message="Loads can run here.")
    if not world.node.ready:
        ready = Observation(
            "Ready", status=False, reason=ConditionReason.NODE_NOT_READY, message="The node is not ready."
        )
    pressure = Observation(
        "CapacityPressure", status=False, reason=ConditionReason.ROOM_LEFT, message="There is room left."
    )
    if tight:
        said = f"Less than 5% is free on {', '.join(tight)}: delete what is not needed, or enlarge the medium."
        pressure = Observation("CapacityPressure", status=True, reason=ConditionReason.ALMOST_FULL, message=said)
    return NodeCacheStatus(
        bootID=world.node.boot_id or None,
        media=media or None,
        entries=listed or None,
        summary=NodeCacheSummary(
            memory_used=units.human_bytes(memory.used_bytes) if memory else "",
            memory_free=units.human_bytes(memory.free_bytes) if memory else "",
            disk_used=units.human_bytes(disk.used_bytes) if disk else "",
            entries=sum(entry.state is EntryState.READY for entry in listed),
            loading=sum(entry.state is EntryState.LOADING for entry in listed),
        ),
        conditions=conditions.merge(
            world.status.conditions or (), (ready, pressure), now=units.format_time(world.now), generation=None
        ),
    )
