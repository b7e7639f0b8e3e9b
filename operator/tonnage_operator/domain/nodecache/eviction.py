"""Decides which entries of a node are evicted: unreferenced ones that no pod holds, and victims of space pressure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tonnage.errors import Reason
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Retention
from tonnage_operator.api.nodecache import MAX_MODELS, EntryState
from tonnage_operator.domain import naming
from tonnage_operator.domain.nodecache.artifacts import find_excess_artifacts
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
"""Entries of a node above which evictable ones are evicted even without pressure: a NodeCache has a limited size."""


MAX_CLEANUPS = 4
"""Cleanup Jobs of a node that run at the same time."""


@dataclass
class Eviction:
    """The updated entries of a node, and the cleanup Jobs to start."""

    entries: dict[EntryKey, CacheEntry] = field(default_factory=dict)
    apply: tuple[Body, ...] = ()
    retry_delays: tuple[float, ...] = ()
    """Seconds until the retry of each failed cleanup."""


@dataclass(frozen=True)
class _References:
    """References to the entries of a node."""

    live: Mapping[EntryKey, list[ModelReferences]]
    deleting: Mapping[str, ModelReferences]
    """Objects that are being deleted, by ``namespace/name``."""
    invalid: frozenset[str]
    """``namespace/name`` of invalid objects. Their references are unknown, so entries that name them are kept."""
    load_job_refs: Mapping[EntryKey, set[str]]
    """Objects with load Jobs for an entry."""
    needed: frozenset[EntryKey]
    """Entries that must not be evicted."""
    held_keys: frozenset[EntryKey]


def plan_eviction(
    snapshot: NodeSnapshot, entries: Mapping[EntryKey, CacheEntry], cleanups: Mapping[EntryKey, Job]
) -> Eviction:
    """Decides which entries are evicted.

    An object is removed from ``models`` of entries that can't be evicted now, so that its deletion can complete.

    Args:
        snapshot: The node.
        entries: The entries on the node.
        cleanups: The latest cleanup Job of each entry.
    """
    references = _collect_references(snapshot)
    named = {key: _update_models(references, key, entry) for key, entry in entries.items()}
    excess = find_excess_artifacts(snapshot, named, references.held_keys)
    references = replace(references, needed=references.needed - excess.keys())
    victims = _select_victims(snapshot, named, references.needed)
    kept: dict[EntryKey, CacheEntry] = {}
    apply: list[Body] = []
    waits: list[float] = []
    active = sum(job.role == names.ROLE_CLEANUP and job.state is JobState.ACTIVE for job in snapshot.jobs)
    for key, entry in named.items():
        job = cleanups.get(key)
        stays = entry.retention is Retention.EVICTABLE and key not in victims
        if key in references.needed or stays or not references.invalid.isdisjoint(entry.models):
            kept[key] = _keep_entry(references, key, entry, job, stays=stays)
        elif key.medium not in snapshot.installation.media or not snapshot.node.ready:
            kept[key] = _changed(entry, models=())  # it is evicted when the node is ready again
        elif active + len(apply) >= MAX_CLEANUPS and (job is None or job.state is not JobState.ACTIVE):
            kept[key] = entry  # it is evicted after the others, whose Jobs enqueue the node when they end
        else:
            kept[key], manifests, wait = _plan_cleanup(snapshot, key, entry, job, excess.get(key, ""))
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
    # An existing load Job counts as a reference: if the entry were evicted now, the Job would add it again.
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
    """Returns the entry with these fields; the same object if nothing changes."""
    if all(getattr(entry, name) == value for name, value in fields.items()):
        return entry
    return entry.model_copy(update=fields)


def _update_models(references: _References, key: EntryKey, entry: CacheEntry) -> CacheEntry:
    """Updates which objects refer to the entry.

    Objects that are being deleted remain until their entry is evicted, which keeps their finalizer.
    """
    alive = {each.ref: each for each in references.live.get(key, ())}
    # If an object was deleted before its entry was recorded, only its load Job refers to it.
    asked = references.load_job_refs.get(key, set()).union(entry.models)
    # It may also have been deleted before the node's record showed the reference.
    going = {ref: each for ref, each in references.deleting.items() if ref in asked or key in each.released}
    keeping = {each.retention for each in (*alive.values(), *going.values())}
    retention = entry.retention
    if naming.is_artifacts_key(key.cache_key):
        retention = Retention.WHILE_REFERENCED
    elif keeping:
        retention = Retention.EVICTABLE if Retention.EVICTABLE in keeping else Retention.WHILE_REFERENCED
    invalid = references.invalid.intersection(entry.models)
    # The list is limited. Objects beyond the limit also keep the entry, and can be deleted without waiting.
    models = tuple(sorted({*(alive or going), *invalid}))[:MAX_MODELS]
    return _changed(entry, models=models, retention=retention)


def _keep_entry(
    references: _References, key: EntryKey, entry: CacheEntry, job: Job | None, *, stays: bool
) -> CacheEntry:
    state = entry.state
    if state is EntryState.EVICTING and not (job and job.state is JobState.ACTIVE):
        # A failed cleanup may leave part of the entry. Partial makes the next loader verify it.
        state = EntryState.PARTIAL
    release = key not in references.live and (key in references.held_keys or stays)
    models = tuple(ref for ref in entry.models if not release or ref in references.invalid)
    return _changed(entry, state=state, models=models)


def _select_victims(
    snapshot: NodeSnapshot, entries: Mapping[EntryKey, CacheEntry], needed: frozenset[EntryKey]
) -> set[EntryKey]:
    """Returns the entries to evict for space: the least recently used evictable entry of each medium under pressure.

    A medium is under pressure if a load on it failed for lack of space, or if the NodeCache has too many entries.
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
    snapshot: NodeSnapshot, key: EntryKey, entry: CacheEntry, job: Job | None, cause: str
) -> tuple[CacheEntry, list[Body], list[float]]:
    """Returns the updated entry, the cleanup Job to start now, and the seconds until a retry."""
    attempt, models = 1, entry.models
    if job is not None and entry.state is not EntryState.EVICTING:
        return (
            entry,
            [],
            [],
        )  # from an earlier eviction: it must be deleted first, so that its success isn't taken for the new one
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
        cause=cause or ("Pressure" if entry.retention is Retention.EVICTABLE else "Unreferenced"),
    )
    return evicting, [manifest], []
