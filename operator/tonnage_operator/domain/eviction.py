"""Which entries of a node are emptied: those that nobody refers to and no pod holds, and those that make room."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tonnage.errors import Reason
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium, Retention
from tonnage_operator.api.nodecache import MAX_MODELS, EntryState
from tonnage_operator.domain import outcomes, units
from tonnage_operator.domain.facts import JobState
from tonnage_operator.domain.jobs import cleanup_job

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage_operator.api.nodecache import CacheEntry
    from tonnage_operator.domain.caches import Key
    from tonnage_operator.domain.facts import Job
    from tonnage_operator.domain.nodecache import NodeWorld, Referrer

GIVE_UP_AFTER = 3
"""Failed cleanups after which a deleted object is let go; the entry stays on record and is tried on."""

CROWD = 500
"""Entries of a node beyond which evictable ones go, though there is room: its record is one object of limited size."""


@dataclass
class Eviction:
    """What becomes of a node's entries, and the Jobs that empty some of them."""

    entries: dict[Key, CacheEntry] = field(default_factory=dict)
    apply: tuple[dict[str, Any], ...] = ()
    waits: tuple[float, ...] = ()
    """Seconds until a failed cleanup is tried again, for each of them."""


@dataclass(frozen=True)
class _Claims:
    """Who refers to which entry."""

    alive: Mapping[Key, list[Referrer]]
    going: Mapping[str, Referrer]
    """Objects that are being deleted, by their name."""
    unread: frozenset[str]
    """Names of objects that can't be read: what they refer to isn't known, so nothing that names them goes."""
    jobs: Mapping[Key, set[str]]
    """Objects that made load Jobs for an entry."""
    needed: frozenset[Key]
    """Entries that must not be emptied now."""
    held: frozenset[Key]


def key_of(job: Job) -> Key:
    """Returns the entry that a load or cleanup Job is about."""
    return job.key, Medium(job.medium)


def evict(world: NodeWorld, entries: Mapping[Key, CacheEntry], cleanups: Mapping[Key, Job]) -> Eviction:
    """Decides which entries are emptied, and lets objects go whose entries can't be.

    Args:
        world: The node.
        entries: What lies there.
        cleanups: The latest cleanup Job for each entry.
    """
    claims = _claims(world)
    named = {key: _referred(claims, key, entry) for key, entry in entries.items()}
    sacrificed = _sacrificed(world, named, claims.needed)
    kept, apply, waits = {}, [], []
    for key, entry in named.items():
        job = cleanups.get(key)
        stays = entry.retention is Retention.EVICTABLE and key not in sacrificed
        if key in claims.needed or stays or not claims.unread.isdisjoint(entry.models):
            kept[key] = _stay(claims, key, entry, job, stays=stays)
        elif key[1] not in world.installation.media or not world.node.ready:
            kept[key] = _changed(entry, models=())  # it is emptied when the node comes back
        else:
            kept[key], wish, wait = _empty(world, key, entry, job)
            apply += wish
            waits += wait
    return Eviction(kept, tuple(apply), tuple(waits))


def _claims(world: NodeWorld) -> _Claims:
    alive: dict[Key, list[Referrer]] = defaultdict(list)
    for each in world.referrers:
        for key in each.references:
            alive[key].append(each)
    loads = [job for job in world.jobs if job.role == names.ROLE_LOAD]
    jobs: dict[Key, set[str]] = defaultdict(set)
    for job in loads:
        jobs[key_of(job)].add(job.model_ref)
    held = {(claim.key, claim.medium) for pod in world.consumers if not pod.over for claim in pod.claims}
    held |= world.pending
    # A Job that is there still speaks for its bytes: emptied now, they would be put on record once more.
    busy = {key_of(job) for job in loads if not job.deleting}
    return _Claims(
        alive=alive,
        going={each.ref: each for each in world.referrers if each.deleting and each.known},
        unread=frozenset(each.ref for each in world.referrers if not each.known and not each.deleting),
        jobs=jobs,
        needed=frozenset(alive) | frozenset(held) | frozenset(busy),
        held=frozenset(held),
    )


def _changed(entry: CacheEntry, **fields: object) -> CacheEntry:
    """Returns the entry with some fields changed; the same one where nothing does."""
    if all(getattr(entry, name) == value for name, value in fields.items()):
        return entry
    return entry.model_copy(update=fields)


def _referred(claims: _Claims, key: Key, entry: CacheEntry) -> CacheEntry:
    """Brings the names of those who refer to the entry up to date.

    Objects that are being deleted stay named until their entry is dealt with: that holds their finalizer.
    """
    alive = {each.ref: each for each in claims.alive.get(key, ())}
    # An object that wrote here but was deleted before anything was on record is still asked for by its Job.
    asked = claims.jobs.get(key, set()).union(entry.models)
    going = {ref: claims.going[ref] for ref in asked if ref in claims.going}
    keeping = {each.retention for each in (*alive.values(), *going.values())}
    retention = entry.retention
    if keeping:
        retention = Retention.EVICTABLE if Retention.EVICTABLE in keeping else Retention.WHILE_REFERENCED
    unread = claims.unread.intersection(entry.models)
    # Of very many, some are named: the entry stays for those that aren't, too, and they can be deleted at once.
    models = tuple(sorted({*(alive or going), *unread}))[:MAX_MODELS]
    return _changed(entry, models=models, retention=retention)


def _stay(claims: _Claims, key: Key, entry: CacheEntry, job: Job | None, *, stays: bool) -> CacheEntry:
    state = entry.state
    if state is EntryState.EVICTING and not (job and job.state is JobState.ACTIVE):
        # Nobody knows what a cleanup left that failed half-way, so the next loader looks.
        state = EntryState.PARTIAL
    let_go = key not in claims.alive and (key in claims.held or stays)
    models = tuple(ref for ref in entry.models if not let_go or ref in claims.unread)
    return _changed(entry, state=state, models=models)


def _sacrificed(world: NodeWorld, entries: Mapping[Key, CacheEntry], needed: frozenset[Key]) -> set[Key]:
    """Returns the evictable entries that make room: the longest unused, for each medium that a load found full.

    Also where there are too many of them for a record.
    """
    chosen: set[Key] = set()
    crowded = len(entries) > CROWD
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
        if (full or crowded) and spare and not any(entry.state is EntryState.EVICTING for _, entry in ours):
            chosen.add(min(spare)[1])
    return chosen


def _empty(
    world: NodeWorld, key: Key, entry: CacheEntry, job: Job | None
) -> tuple[CacheEntry, list[dict[str, Any]], list[float]]:
    """Returns the entry while it is emptied, the Job to start now, and the seconds until the next try."""
    attempt, models = 1, entry.models
    if job is not None and entry.state is not EntryState.EVICTING:
        return entry, [], []  # of an earlier time: it is removed first, or its success would be taken for this one's
    if job is not None:
        if job.state is not JobState.FAILED:
            return entry, [], []
        policy = outcomes.RetryPolicy(world.installation.retry_base, world.installation.retry_cap)
        waited = (world.now - units.parse_time(job.finished)).total_seconds() if job.finished else 0.0
        if job.attempt >= GIVE_UP_AFTER:
            models = ()
        if (rest := policy.delay(job.attempt, job.name) - waited) > 0:
            return _changed(entry, models=models), [], [rest]
        attempt = job.attempt + 1
    evicting = _changed(entry, state=EntryState.EVICTING, models=models)
    wish = cleanup_job(
        world.installation,
        key=key[0],
        medium=key[1],
        node=world.node,
        attempt=attempt,
        uid=world.uid,
        model_ref=entry.models[0] if entry.models else "",
        cause="Pressure" if entry.retention is Retention.EVICTABLE else "Unreferenced",
    )
    return evicting, [wish], []
