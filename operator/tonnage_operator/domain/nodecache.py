"""What lies on one node: its ``NodeCache``, and the Jobs that empty what nobody needs any more.

The record is derived from Jobs and pods, and kept in the object, since both vanish. Memory doesn't outlive a boot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import CacheEntry, EntryState, MediumState, NodeCacheStatus, NodeCacheSummary
from tonnage_operator.domain import conditions, outcomes, units
from tonnage_operator.domain.conditions import Observation
from tonnage_operator.domain.eviction import evict, key_of
from tonnage_operator.domain.facts import JobState
from tonnage_operator.domain.ranks import joined
from tonnage_operator.domain.reasons import ConditionReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from tonnage_operator.api.modelweights import Retention
    from tonnage_operator.domain.caches import Key
    from tonnage_operator.domain.claims import Claim
    from tonnage_operator.domain.facts import Job, Node, Pod
    from tonnage_operator.domain.installation import Installation


@dataclass(frozen=True)
class Referrer:
    """A ``ModelWeights``, as far as a node cares."""

    ref: str
    deleting: bool
    references: frozenset[Key]
    retention: Retention
    known: bool = True
    """False: the object can't be read by this release, so what names it stays as it is."""
    guests: bool = False
    """Pods of other namespaces may use it."""

    def speaks_for(self, key: Key, namespace: str) -> bool:
        """Returns whether pods of a namespace may have loaded an entry on this object's account."""
        return key in self.references and (self.guests or self.ref.partition("/")[0] == namespace)


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
    """Objects that refer to what is or may be here, and those that are being deleted; others don't matter."""
    jobs: Sequence[Job] = ()
    """Load and cleanup Jobs for this node, as ``outcomes.as_known`` has them."""
    pods: Mapping[str, Pod] = field(default_factory=dict)
    """The latest pod of each Job, by the Job's uid."""
    consumers: Sequence[Pod] = ()
    """Pods of users on this node."""
    pending: frozenset[Key] = frozenset()
    """Entries that pods without a node yet were admitted with."""
    told: Mapping[tuple[str, str], contract.Outcome] = field(default_factory=dict)
    """How loads of pods of users ended, as reported since this process began, by the pod's uid and the entry's name."""
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
    eviction = evict(world, entries, cleanups)
    wanted = {key for key, entry in eviction.entries.items() if entry.state is EntryState.EVICTING}
    delete = tuple(
        job
        for job in world.jobs
        if job.role == names.ROLE_CLEANUP
        and not job.deleting
        and (key_of(job) not in wanted or job is not cleanups.get(key_of(job)))
        and job.state is not JobState.ACTIVE
    )
    if not world.uid and not eviction.entries:
        return NodeDecision(None, delete=delete)
    waits = [*eviction.waits]
    waits += [rest for job in world.jobs if (rest := outcomes.unsettled(job, world.pods.get(job.uid), world.now))]
    return NodeDecision(_status(world, eviction.entries), eviction.apply, delete, min(waits, default=None))


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
            before = latest.get(key_of(job))
            if before is None or before.attempt < job.attempt:
                latest[key_of(job)] = job
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
    """Adds what load Jobs did or do. They load all ranks."""
    entries = dict(entries)
    for job in world.jobs:
        if job.role != names.ROLE_LOAD or (job.medium == Medium.MEMORY.value and job.boot_id != world.node.boot_id):
            continue
        key = key_of(job)
        entry = entries.get(key) or _fresh(key)
        unfinished = entry.state in {EntryState.PARTIAL, EntryState.LOADING}
        if job.state is JobState.SUCCEEDED and (unfinished or (entry.state is EntryState.READY and entry.ranks)):
            report = outcomes.last_words(world.pods.get(job.uid))
            entry = entry.model_copy(
                update={
                    "state": EntryState.READY,
                    "bytes": report.bytes if report else entry.bytes,
                    "ranks": None,
                    "verified": (report.verified if report else "") or entry.verified,
                    "revision": (report.revision if report else "") or entry.revision,
                    "last_used_time": job.finished or units.format_time(world.now),
                }
            )
        elif job.state is JobState.ACTIVE and entry.state is EntryState.PARTIAL:
            entry = entry.model_copy(update={"state": EntryState.LOADING})
        entries[key] = entry
    return entries


def _fresh(key: Key) -> CacheEntry:
    return CacheEntry(name=key[0], medium=key[1], state=EntryState.PARTIAL)


def _used(world: NodeWorld, entries: dict[Key, CacheEntry]) -> dict[Key, CacheEntry]:
    """Adds what pods of users hold: their loaders load, too."""
    entries = dict(entries)
    for pod in world.consumers:
        for claim in pod.claims:
            key = (claim.key, claim.medium)
            if not claim.key or (pod.over and key not in entries):
                continue
            entry = entries.get(key) or _fresh(key)
            if _is_credible(world, pod, key) and _has_loaded(world, pod, claim):
                entry = _held(entry, claim)
            elif _may_load(world, pod, claim) and entry.state is EntryState.PARTIAL:
                entry = entry.model_copy(update={"state": EntryState.LOADING})
            if pod.created and pod.created > (entry.last_used_time or ""):
                entry = entry.model_copy(update={"last_used_time": pod.created})
            entries[key] = entry
    return entries


def _is_credible(world: NodeWorld, pod: Pod, key: Key) -> bool:
    """Returns whether the pod's word counts: anyone may write annotations, so an object has to stand behind it."""
    return any(each.speaks_for(key, pod.namespace) for each in world.referrers)


def _has_loaded(world: NodeWorld, pod: Pod, claim: Claim) -> bool:
    """Returns whether a loader of the pod has brought its entry."""
    loader = next((each for each in pod.loaders if each.name == claim.container and each.ready), None)
    if loader is None or not claim.optional:
        return loader is not None
    return _outcome(world, pod, claim) in {contract.Outcome.LOADED, contract.Outcome.HIT}


def _may_load(world: NodeWorld, pod: Pod, claim: Claim) -> bool:
    """Returns whether a loader of the pod may be at work: one that has given up lets its pod run without the entry."""
    return not pod.over and not pod.deleting and _outcome(world, pod, claim) is not contract.Outcome.FAILED


def _outcome(world: NodeWorld, pod: Pod, claim: Claim) -> contract.Outcome | None:
    """Returns how the load ended, by its last words or its report; None: that isn't known."""
    words = next((outcomes.words_of(each) for each in pod.loaders if each.name == claim.container), None)
    return (words and words.outcome) or world.told.get((pod.uid, claim.key.rpartition("/")[2]))


def _held(entry: CacheEntry, claim: Claim) -> CacheEntry:
    """Returns the entry with what a pod has loaded into it."""
    if entry.state is EntryState.READY and entry.ranks:
        return entry.model_copy(update={"ranks": joined(entry.ranks, claim.ranks)})
    if entry.state in {EntryState.READY, EntryState.EVICTING}:
        return entry
    return entry.model_copy(
        update={
            "state": EntryState.READY,
            "bytes": claim.bytes or entry.bytes,
            "ranks": claim.ranks or None,
            "verified": claim.verify or entry.verified,
            "revision": claim.revision,
        }
    )


def _settled(world: NodeWorld, entries: dict[Key, CacheEntry]) -> dict[Key, CacheEntry]:
    """Marks what was loading and isn't any more: its bytes are there, and the next loader resumes from them."""
    active = {key_of(job) for job in world.jobs if job.role == names.ROLE_LOAD and job.state is JobState.ACTIVE}
    active |= {
        (claim.key, claim.medium) for pod in world.consumers for claim in pod.claims if _may_load(world, pod, claim)
    }
    return {
        key: entry.model_copy(update={"state": EntryState.PARTIAL})
        if entry.state is EntryState.LOADING and key not in active
        else entry
        for key, entry in entries.items()
    }


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
