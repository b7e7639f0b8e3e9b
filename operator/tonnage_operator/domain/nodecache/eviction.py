"""Decides which entries of a node are evicted: unreferenced ones that no pod holds, and some to make room."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from tonnage.errors import Reason
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Retention
from tonnage_operator.api.nodecache import MAX_MODELS, EntryState
from tonnage_operator.domain import naming
from tonnage_operator.domain.nodecache.artifacts import find_excess_artifacts
from tonnage_operator.domain.nodecache.capacity import Usage, reserve, select_for_room, total_bytes
from tonnage_operator.domain.observed import job_results
from tonnage_operator.domain.observed.job import JobState
from tonnage_operator.domain.retry import MAX_CLEANUP_ATTEMPTS, retry_delay
from tonnage_operator.domain.specs.jobs import build_cleanup_job

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tonnage import contract
    from tonnage_operator.api.base import Body
    from tonnage_operator.api.modelweights import Medium
    from tonnage_operator.api.nodecache import CacheEntry, EntryKey
    from tonnage_operator.domain.installation import MediumLimits
    from tonnage_operator.domain.nodecache.capacity import LoadRequest, Shortage
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
    shortages: Mapping[EntryKey, Shortage] = field(default_factory=dict)
    """Loads for which there is no room."""
    limits: Mapping[Medium, MediumLimits] = field(default_factory=dict)
    """Of each medium, with the effective capacity."""
    usages: Mapping[Medium, Usage] = field(default_factory=dict)
    """Watermarks and state of each medium."""


@dataclass(frozen=True)
class _References:
    """References to the entries of a node."""

    live: Mapping[EntryKey, list[ModelReferences]]
    deleting: Mapping[str, ModelReferences]
    """Objects that are being deleted, by ``namespace/name``."""
    releasing: tuple[ModelReferences, ...]
    """Objects that referred to other entries before a change."""
    invalid: frozenset[str]
    """``namespace/name`` of invalid objects. Their references are unknown, so entries that name them are kept."""
    load_job_refs: Mapping[EntryKey, set[str]]
    """Objects with load Jobs for an entry."""
    needed: frozenset[EntryKey]
    """Entries that must not be evicted."""
    held_keys: frozenset[EntryKey]
    """Those of pods."""
    active: frozenset[EntryKey]
    """Those of pods and of running load Jobs."""


def plan_eviction(
    snapshot: NodeSnapshot,
    entries: Mapping[EntryKey, CacheEntry],
    cleanups: Mapping[EntryKey, Job],
    requests: Sequence[LoadRequest],
    limits: Mapping[Medium, MediumLimits],
) -> Eviction:
    """Reserves room for loads, and decides which entries are evicted.

    An object is removed from ``models`` of entries that can't be evicted now, so that its deletion can complete.

    Args:
        snapshot: The node.
        entries: The entries on the node.
        cleanups: The latest cleanup Job of each entry.
        requests: The loads that are running or about to begin.
        limits: The limits of each medium, with the effective capacity.
    """
    references = _collect_references(snapshot)
    named = {key: _update_models(references, key, entry) for key, entry in entries.items()}
    excess = find_excess_artifacts(snapshot, named, references.held_keys)
    references = replace(references, needed=references.needed - excess.keys())
    expendable = _find_expendable(snapshot, references, named, {each.key for each in requests})
    evictable = {*expendable.evictable, *expendable.interrupted}
    reservations = reserve(named, requests, limits=limits, evictable=evictable)
    named = reservations.entries
    shortages = tuple(reservations.shortages.values())
    usages = {medium: _usage(snapshot, medium, limit, named) for medium, limit in limits.items()}
    victims = _select_victims(snapshot, named, expendable, references)
    for medium, usage in usages.items():
        victims |= select_for_room(
            [entry for key, entry in named.items() if key.medium is medium],
            [each for each in shortages if each.key.medium is medium],
            usage,
            evictable=expendable.evictable,
            interrupted=expendable.interrupted,
        )
    causes = {**dict.fromkeys(expendable.interrupted, "Interrupted"), **excess}
    kept: dict[EntryKey, CacheEntry] = {}
    apply: list[Body] = []
    waits: list[float] = []
    active = sum(job.role == names.ROLE_CLEANUP and job.state is JobState.ACTIVE for job in snapshot.jobs)
    for key, entry in named.items():
        job = cleanups.get(key)
        stays = _is_kept_for_later(snapshot, references, key, entry) and key not in victims
        needed = key in references.needed and key not in victims
        if needed or stays or not references.invalid.isdisjoint(entry.models):
            kept[key] = _keep_entry(references, key, entry, job, stays=stays)
            if (left := snapshot.group_entries.get(key, math.inf)) < math.inf:
                waits.append(left)
        elif key.medium not in snapshot.installation.media or not snapshot.node.ready:
            kept[key] = _changed(entry, models=())  # it is evicted when the node is ready again
        elif active + len(apply) >= MAX_CLEANUPS and (job is None or job.state is not JobState.ACTIVE):
            kept[key] = entry  # it is evicted after the others, whose Jobs enqueue the node when they end
        else:
            kept[key], manifests, wait = _plan_cleanup(snapshot, key, entry, job, causes.get(key, ""))
            apply += manifests
            waits += wait
    return Eviction(kept, tuple(apply), tuple(waits), reservations.shortages, limits, usages)


def _is_kept_for_later(snapshot: NodeSnapshot, references: _References, key: EntryKey, entry: CacheEntry) -> bool:
    """Returns whether an entry stays without references until its space is needed.

    What groups keep does, too, so that pods with a group's labels can't take room from loads; but not after its last
    pod if the object is being deleted, which waits for the eviction.
    """
    left = snapshot.group_entries.get(key, 0.0)
    of_group = left == math.inf or (left > 0 and references.deleting.keys().isdisjoint(entry.models))
    return entry.retention is Retention.EVICTABLE or of_group


def _usage(
    snapshot: NodeSnapshot, medium: Medium, limit: MediumLimits, entries: Mapping[EntryKey, CacheEntry]
) -> Usage:
    installation, capacity = snapshot.installation, limit.capacity
    high = capacity * installation.high_watermark_percent // 100
    low = capacity * installation.low_watermark_percent // 100
    total = sum(
        total_bytes(entry)
        for key, entry in entries.items()
        if key.medium is medium and entry.state is not EntryState.EVICTING
    )
    before = any(state.name is medium and state.pressure for state in snapshot.status.media or ())
    return Usage(capacity, high, low, bool(capacity) and (total > high or (before and total > low)))


class _Expendable(NamedTuple):
    """Entries that may be evicted to make room."""

    evictable: frozenset[EntryKey]
    """Nothing needs them, and they are kept for later use only."""
    interrupted: frozenset[EntryKey]
    """Objects refer to them, but no loader is at work: the next one would resume them."""


def _find_expendable(
    snapshot: NodeSnapshot,
    references: _References,
    entries: Mapping[EntryKey, CacheEntry],
    requested: Collection[EntryKey],
) -> _Expendable:
    return _Expendable(
        frozenset(
            key
            for key, entry in entries.items()
            if _is_kept_for_later(snapshot, references, key, entry)
            and entry.state is not EntryState.EVICTING
            and key not in references.needed
            and key not in requested
            and references.invalid.isdisjoint(entry.models)
        ),
        frozenset(
            key
            for key, entry in entries.items()
            if entry.state is EntryState.PARTIAL
            and entry.bytes
            and key in references.needed
            and key not in references.active
            and key not in requested
            and references.invalid.isdisjoint(entry.models)
        ),
    )


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
    running = {job.entry_key for job in loads if job.state is JobState.ACTIVE}
    return _References(
        live=alive,
        deleting={each.ref: each for each in snapshot.references if each.deleting and each.is_valid},
        releasing=tuple(each for each in snapshot.references if each.released and not each.deleting),
        invalid=frozenset(each.ref for each in snapshot.references if not each.is_valid and not each.deleting),
        load_job_refs=jobs,
        needed=frozenset(alive) | frozenset(held_keys) | frozenset(busy),
        held_keys=frozenset(held_keys),
        active=frozenset(held_keys | running),
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
    keeping = keeping or {each.retention for each in references.releasing if key in each.released}
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
    snapshot: NodeSnapshot,
    entries: Mapping[EntryKey, CacheEntry],
    expendable: _Expendable,
    references: _References,
) -> set[EntryKey]:
    """Returns the entries to evict where no capacity is set: the least recently used one of each medium that is full.

    A medium is full if a load on it failed for lack of space, or if the NodeCache has too many entries. What
    interrupted loads have left is removed when nothing else can be.
    """
    chosen: set[EntryKey] = set()
    over_limit = len(entries) > MAX_ENTRIES
    for medium in snapshot.installation.media:
        evicting = {
            key for key, entry in entries.items() if key.medium is medium and entry.state is EntryState.EVICTING
        }
        chosen |= evicting - references.needed
        failed = _failed_for_space(snapshot, medium)
        groups = ((failed or over_limit, expendable.evictable), (failed, expendable.interrupted - failed))
        oldest = (
            min((entries[key].last_used_time or "", key) for key in group if key.medium is medium)[1]
            for applies, group in groups
            if applies and any(key.medium is medium for key in group)
        )
        if not evicting and (victim := next(oldest, None)):
            chosen.add(victim)
    return chosen


def _failed_for_space(snapshot: NodeSnapshot, medium: Medium) -> frozenset[EntryKey]:
    """Returns the entries whose load failed for lack of space, in a Job or in a pod that still wants the model.

    Where room is reserved, only those count for which the file system was full: for the others room is made already.
    """
    of_jobs = {
        job.entry_key
        for job in snapshot.jobs
        if job.role == names.ROLE_LOAD
        and job.medium == medium.value
        and job.state is JobState.FAILED
        and job_results.job_failure(job, snapshot.pods.get(job.uid)).reason == Reason.INSUFFICIENT_SPACE
        and _was_file_system_full(snapshot, medium, job_results.final_report(snapshot.pods.get(job.uid)), job.bytes)
    }
    of_pods = {
        held.entry_key
        for pod in snapshot.consumers
        for held in pod.held_entries
        for loader in pod.loaders
        if held.medium is medium
        and loader.name == held.container
        and not (loader.running or loader.ready or pod.is_terminal or pod.deleting)
        and (report := job_results.termination_report(loader)) is not None
        and report.reason == Reason.INSUFFICIENT_SPACE
        and _was_file_system_full(snapshot, medium, report, held.bytes)
    }
    return frozenset(of_jobs | of_pods)


def _was_file_system_full(
    snapshot: NodeSnapshot, medium: Medium, report: contract.Report | None, required_bytes: int
) -> bool:
    """Returns whether a load that needed these bytes failed because of its file system, and not of a limit."""
    host, found = snapshot.installation.media[medium], report.medium if report else None
    if found is None or not host.limits.needs_reservation:
        return True
    min_free = max(host.min_free_bytes, found.capacity_bytes * host.min_free_percent // 100)
    return found.free_bytes < required_bytes + min_free


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
