"""Which entries of a node are emptied: those that nobody refers to and no pod holds, and those that make room."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tonnage.errors import Reason
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Retention
from tonnage_operator.api.nodecache import MAX_MODELS, EntryState
from tonnage_operator.domain.observed import job_results
from tonnage_operator.domain.observed.job import JobState
from tonnage_operator.domain.retry import MAX_CLEANUP_ATTEMPTS, retry_delay
from tonnage_operator.domain.specs.jobs import build_cleanup_job

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage_operator.api.base import Body
    from tonnage_operator.api.nodecache import CacheEntry, EntryKey
    from tonnage_operator.domain.nodecache.snapshot import ModelReferences, NodeSnapshot
    from tonnage_operator.domain.observed.job import Job

MAX_ENTRIES = 500
"""Entries of a node beyond which evictable ones go, though there is room: its record is one object of limited size."""


@dataclass
class Eviction:
    """What becomes of a node's entries, and the Jobs that empty some of them."""

    entries: dict[EntryKey, CacheEntry] = field(default_factory=dict)
    apply: tuple[Body, ...] = ()
    retry_delays: tuple[float, ...] = ()
    """Seconds until a failed cleanup is tried again, for each of them."""


@dataclass(frozen=True)
class _References:
    """Who refers to which entry."""

    live: Mapping[EntryKey, list[ModelReferences]]
    deleting: Mapping[str, ModelReferences]
    """Objects that are being deleted, by their name."""
    invalid: frozenset[str]
    """Names of objects that can't be read: what they refer to isn't known, so nothing that names them goes."""
    load_job_refs: Mapping[EntryKey, set[str]]
    """Objects that made load Jobs for an entry."""
    needed: frozenset[EntryKey]
    """Entries that must not be emptied now."""
    held_keys: frozenset[EntryKey]


def plan_eviction(
    snapshot: NodeSnapshot, entries: Mapping[EntryKey, CacheEntry], cleanups: Mapping[EntryKey, Job]
) -> Eviction:
    """Decides which entries are emptied, and lets objects go whose entries can't be.

    Args:
        snapshot: The node.
        entries: What lies there.
        cleanups: The latest cleanup Job for each entry.
    """
    references = _collect_references(snapshot)
    named = {key: _update_models(references, key, entry) for key, entry in entries.items()}
    victims = _select_victims(snapshot, named, references.needed)
    kept, apply, waits = {}, [], []
    for key, entry in named.items():
        job = cleanups.get(key)
        stays = entry.retention is Retention.EVICTABLE and key not in victims
        if key in references.needed or stays or not references.invalid.isdisjoint(entry.models):
            kept[key] = _keep_entry(references, key, entry, job, stays=stays)
        elif key.medium not in snapshot.installation.media or not snapshot.node.ready:
            kept[key] = _changed(entry, models=())  # it is emptied when the node comes back
        else:
            kept[key], manifests, wait = _plan_cleanup(snapshot, key, entry, job)
            apply += manifests
            waits += wait
    return Eviction(kept, tuple(apply), tuple(waits))


def _collect_references(snapshot: NodeSnapshot) -> _References:
    alive: dict[EntryKey, list[ModelReferences]] = defaultdict(list)
    for each in snapshot.references:
        for key in each.entries:
            alive[key].append(each)
    loads = [job for job in snapshot.jobs if job.role == names.ROLE_LOAD]
    jobs: dict[EntryKey, set[str]] = defaultdict(set)
    for job in loads:
        jobs[job.entry_key].add(job.model_ref)
    held_keys = {held.entry_key for pod in snapshot.consumers if not pod.is_terminal for held in pod.held_entries}
    held_keys |= snapshot.pending_entries
    # A Job that is there still speaks for its bytes: emptied now, they would be put on record once more.
    busy = {job.entry_key for job in loads if not job.deleting}
    return _References(
        live=alive,
        deleting={each.ref: each for each in snapshot.references if each.deleting and each.is_valid},
        invalid=frozenset(each.ref for each in snapshot.references if not each.is_valid and not each.deleting),
        load_job_refs=jobs,
        needed=frozenset(alive) | frozenset(held_keys) | frozenset(busy),
        held_keys=frozenset(held_keys),
    )


def _changed(entry: CacheEntry, **fields: object) -> CacheEntry:
    """Returns the entry with some fields changed; the same one where nothing does."""
    if all(getattr(entry, name) == value for name, value in fields.items()):
        return entry
    return entry.model_copy(update=fields)


def _update_models(references: _References, key: EntryKey, entry: CacheEntry) -> CacheEntry:
    """Brings the names of those who refer to the entry up to date.

    Objects that are being deleted stay named until their entry is dealt with: that holds their finalizer.
    """
    alive = {each.ref: each for each in references.live.get(key, ())}
    # An object that wrote here but was deleted before anything was on record is still asked for by its Job.
    asked = references.load_job_refs.get(key, set()).union(entry.models)
    going = {ref: references.deleting[ref] for ref in asked if ref in references.deleting}
    keeping = {each.retention for each in (*alive.values(), *going.values())}
    retention = entry.retention
    if keeping:
        retention = Retention.EVICTABLE if Retention.EVICTABLE in keeping else Retention.WHILE_REFERENCED
    invalid = references.invalid.intersection(entry.models)
    # Of very many, some are named: the entry stays for those that aren't, too, and they can be deleted at once.
    models = tuple(sorted({*(alive or going), *invalid}))[:MAX_MODELS]
    return _changed(entry, models=models, retention=retention)


def _keep_entry(
    references: _References, key: EntryKey, entry: CacheEntry, job: Job | None, *, stays: bool
) -> CacheEntry:
    state = entry.state
    if state is EntryState.EVICTING and not (job and job.state is JobState.ACTIVE):
        # Nobody knows what a cleanup left that failed half-way, so the next loader looks.
        state = EntryState.PARTIAL
    release = key not in references.live and (key in references.held_keys or stays)
    models = tuple(ref for ref in entry.models if not release or ref in references.invalid)
    return _changed(entry, state=state, models=models)


def _select_victims(
    snapshot: NodeSnapshot, entries: Mapping[EntryKey, CacheEntry], needed: frozenset[EntryKey]
) -> set[EntryKey]:
    """Returns the evictable entries that make room: the longest unused, for each medium that a load found full.

    Also where there are too many of them for a record.
    """
    chosen: set[EntryKey] = set()
    over_limit = len(entries) > MAX_ENTRIES
    for medium in snapshot.installation.media:
        candidates = [(key, entry) for key, entry in entries.items() if key.medium is medium and key not in needed]
        chosen |= {key for key, entry in candidates if entry.state is EntryState.EVICTING}
        full = any(
            job.role == names.ROLE_LOAD
            and job.medium == medium.value
            and job.state is JobState.FAILED
            and job_results.job_failure(job, snapshot.pods.get(job.uid)).reason == Reason.INSUFFICIENT_SPACE
            for job in snapshot.jobs
        )
        evictable = [
            (entry.last_used_time or "", key) for key, entry in candidates if entry.retention is Retention.EVICTABLE
        ]
        if (
            (full or over_limit)
            and evictable
            and not any(entry.state is EntryState.EVICTING for _, entry in candidates)
        ):
            chosen.add(min(evictable)[1])
    return chosen


def _plan_cleanup(
    snapshot: NodeSnapshot, key: EntryKey, entry: CacheEntry, job: Job | None
) -> tuple[CacheEntry, list[Body], list[float]]:
    """Returns the entry while it is emptied, the Job to start now, and the seconds until the next try."""
    attempt, models = 1, entry.models
    if job is not None and entry.state is not EntryState.EVICTING:
        return entry, [], []  # of an earlier time: it is removed first, or its success would be taken for this one's
    if job is not None:
        if job.state is not JobState.FAILED:
            return entry, [], []
        if job.attempt >= MAX_CLEANUP_ATTEMPTS:
            models = ()
        if (delay := retry_delay(job, snapshot.installation, snapshot.now)) > 0:
            return _changed(entry, models=models), [], [delay]
        attempt = job.attempt + 1
    evicting = _changed(entry, state=EntryState.EVICTING, models=models)
    manifest = build_cleanup_job(
        snapshot.installation,
        key=key.cache_key,
        medium=key.medium,
        node=snapshot.node,
        attempt=attempt,
        uid=snapshot.uid,
        model_ref=entry.models[0] if entry.models else "",
        cause="Pressure" if entry.retention is Retention.EVICTABLE else "Unreferenced",
    )
    return evicting, [manifest], []
