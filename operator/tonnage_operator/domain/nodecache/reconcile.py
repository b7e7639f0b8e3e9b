"""Decides the ``NodeCache`` of one node, and the cleanup Jobs to start there.

The record is derived from Jobs and pods. It is stored in the NodeCache because Jobs and pods are deleted. Entries in
memory are dropped after a reboot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tonnage import contract
from tonnage.contract.ranks import merge_ranks
from tonnage.contract.sizes import human_bytes
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium, Verify
from tonnage_operator.api.nodecache import CacheEntry, EntryState, MediumStatus, NodeCacheStatus, NodeCacheSummary
from tonnage_operator.domain import conditions, naming, units
from tonnage_operator.domain.conditions import Observation
from tonnage_operator.domain.nodecache.artifacts import apply_artifacts
from tonnage_operator.domain.nodecache.eviction import plan_eviction
from tonnage_operator.domain.nodecache.record_limits import MAX_BYTES, cut_entries
from tonnage_operator.domain.observed import job_results
from tonnage_operator.domain.observed.job import JobState, latest_attempts
from tonnage_operator.domain.reasons import ConditionReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tonnage_operator.api.base import Body
    from tonnage_operator.api.nodecache import EntryKey
    from tonnage_operator.domain.nodecache.snapshot import NodeSnapshot
    from tonnage_operator.domain.observed.held_entries import HeldEntry
    from tonnage_operator.domain.observed.job import Job
    from tonnage_operator.domain.observed.pod import Pod


@dataclass(frozen=True)
class NodeDecision:
    """What to do: write the status, then apply and delete Jobs. ``status`` is None if there is nothing to record."""

    status: NodeCacheStatus | None
    apply: tuple[Body, ...] = ()
    delete: tuple[Job, ...] = ()
    requeue_after: float | None = None


def decide_node(snapshot: NodeSnapshot) -> NodeDecision:
    """Returns the new status of the NodeCache, and the cleanup Jobs to apply and delete."""
    entries = _surviving_entries(snapshot)
    cleanups = latest_attempts(
        (
            job
            for job in snapshot.jobs
            if job.role == names.ROLE_CLEANUP and not job.deleting and job.boot_id == snapshot.node.boot_id
        ),
        key=lambda job: job.entry_key,
    )
    entries = _drop_emptied(entries, cleanups)
    entries = _apply_load_jobs(snapshot, entries)
    entries = _apply_consumers(snapshot, entries)
    entries = apply_artifacts(snapshot, entries)
    entries = _mark_interrupted(snapshot, entries)
    eviction = plan_eviction(snapshot, entries, cleanups)
    wanted = {key for key, entry in eviction.entries.items() if entry.state is EntryState.EVICTING}
    delete = tuple(
        job
        for job in snapshot.jobs
        if job.role == names.ROLE_CLEANUP
        and not job.deleting
        and (job.entry_key not in wanted or job is not cleanups.get(job.entry_key))
        and job.state is not JobState.ACTIVE
    )
    if not snapshot.uid and not eviction.entries:
        return NodeDecision(None, delete=delete)
    delays = [*eviction.retry_delays]
    delays += [
        remaining_seconds
        for job in snapshot.jobs
        if (remaining_seconds := job_results.remaining_grace_period(job, snapshot.pods.get(job.uid), snapshot.now))
    ]
    return NodeDecision(_status(snapshot, eviction.entries), eviction.apply, delete, min(delays, default=None))


def _surviving_entries(snapshot: NodeSnapshot) -> dict[EntryKey, CacheEntry]:
    """Returns the recorded entries, without those lost in a reboot, and without names that no entry can have."""
    rebooted = bool(snapshot.status.boot_id) and snapshot.status.boot_id != snapshot.node.boot_id
    return {
        entry.entry_key: entry
        for entry in snapshot.status.entries or ()
        if not (rebooted and entry.medium is Medium.MEMORY) and naming.is_cache_key(entry.name)
    }


def _drop_emptied(entries: dict[EntryKey, CacheEntry], cleanups: dict[EntryKey, Job]) -> dict[EntryKey, CacheEntry]:
    """Drops entries whose cleanup succeeded. Only evicting ones, so that an old Job can't drop a new entry."""
    return {
        key: entry
        for key, entry in entries.items()
        if not (entry.state is EntryState.EVICTING and key in cleanups and cleanups[key].state is JobState.SUCCEEDED)
    }


def _apply_load_jobs(snapshot: NodeSnapshot, entries: dict[EntryKey, CacheEntry]) -> dict[EntryKey, CacheEntry]:
    """Adds the entries of load Jobs, which load all ranks."""
    entries = dict(entries)
    for job in snapshot.jobs:
        if job.role != names.ROLE_LOAD or (job.medium == Medium.MEMORY.value and job.boot_id != snapshot.node.boot_id):
            continue
        key = job.entry_key
        entry = entries.get(key) or _new_entry(key)
        unfinished = entry.state in {EntryState.PARTIAL, EntryState.LOADING}
        if job.state is JobState.SUCCEEDED and (unfinished or (entry.state is EntryState.READY and entry.ranks)):
            report = job_results.final_report(snapshot.pods.get(job.uid))
            entry = entry.model_copy(
                update={
                    "state": EntryState.READY,
                    "bytes": report.bytes if report else entry.bytes,
                    "ranks": None,
                    "verified": _VERIFY_LEVELS.get(report.verified if report else "") or entry.verified,
                    "verified_by": (report.verified_by if report else "") or entry.verified_by,
                    "revision": (report.revision if report else "") or entry.revision,
                    "last_used_time": job.finished_time or units.format_time(snapshot.now),
                }
            )
        elif job.state is JobState.ACTIVE and entry.state is EntryState.PARTIAL:
            entry = entry.model_copy(update={"state": EntryState.LOADING})
        entries[key] = entry
    return entries


_VERIFY_LEVELS = {each.value.lower(): each.value for each in Verify}
"""The levels as ``spec.verify`` has them, by those of reports."""
_PROVEN_LEVELS = {each.value: each.value for each in Verify if each is not Verify.BEST}
"""The levels that a load reaches or fails. What ``Best`` was only its report has."""


def _new_entry(key: EntryKey) -> CacheEntry:
    return CacheEntry(name=key.cache_key, medium=key.medium, state=EntryState.PARTIAL)


def _apply_consumers(snapshot: NodeSnapshot, entries: dict[EntryKey, CacheEntry]) -> dict[EntryKey, CacheEntry]:
    """Adds the entries that users' pods hold, because their loaders load, too.

    An annotation alone adds none: an object authorizes it, or the kubelet has started the loader, which may have
    written.
    """
    entries = dict(entries)
    for pod in snapshot.consumers:
        for held_entry in pod.held_entries:
            key = held_entry.entry_key
            authorized = _is_authorized(snapshot, pod, key)
            if held_entry.is_artifacts:
                continue
            is_new = key not in entries and (pod.is_terminal or not (authorized or _has_started(pod, held_entry)))
            if not held_entry.key or is_new:
                continue
            entry = entries.get(key) or _new_entry(key)
            if authorized and _has_loaded(snapshot, pod, held_entry):
                entry = _mark_loaded(entry, held_entry)
            elif _may_load(snapshot, pod, held_entry) and entry.state is EntryState.PARTIAL:
                entry = entry.model_copy(update={"state": EntryState.LOADING})
            if pod.created and pod.created > (entry.last_used_time or ""):
                entry = entry.model_copy(update={"last_used_time": pod.created})
            entries[key] = entry
    return entries


def _has_started(pod: Pod, held_entry: HeldEntry) -> bool:
    return any(each.name == held_entry.container and each.started for each in pod.loaders)


def _is_authorized(snapshot: NodeSnapshot, pod: Pod, key: EntryKey) -> bool:
    """Returns whether a ``ModelWeights`` authorizes the pod to use the entry, as it did at admission."""
    return any(each.covers(key, pod.namespace) for each in snapshot.references)


def _has_loaded(snapshot: NodeSnapshot, pod: Pod, held_entry: HeldEntry) -> bool:
    """Returns whether a loader of the pod has loaded the entry."""
    loader = next((each for each in pod.loaders if each.name == held_entry.container and each.ready), None)
    if loader is None or not held_entry.optional:
        return loader is not None
    return _load_outcome(snapshot, pod, held_entry) in {contract.Outcome.LOADED, contract.Outcome.HIT}


def _may_load(snapshot: NodeSnapshot, pod: Pod, held_entry: HeldEntry) -> bool:
    """Returns whether a loader of the pod may still load. After a failure, an optional loader lets its pod run."""
    return (
        not pod.is_terminal
        and not pod.deleting
        and _load_outcome(snapshot, pod, held_entry) is not contract.Outcome.FAILED
    )


def _load_outcome(snapshot: NodeSnapshot, pod: Pod, held_entry: HeldEntry) -> contract.Outcome | None:
    """Returns the outcome from the termination message, otherwise from the last report; None if unknown."""
    report = next(
        (job_results.termination_report(each) for each in pod.loaders if each.name == held_entry.container), None
    )
    return (report and report.outcome) or snapshot.reported_outcomes.get((pod.uid, naming.entry_of(held_entry.key)))


def _mark_loaded(entry: CacheEntry, held_entry: HeldEntry) -> CacheEntry:
    """Returns the entry after a pod has loaded it."""
    if entry.state is EntryState.READY and entry.ranks:
        return entry.model_copy(update={"ranks": merge_ranks(entry.ranks, held_entry.ranks)})
    if entry.state in {EntryState.READY, EntryState.EVICTING}:
        return entry
    return entry.model_copy(
        update={
            "state": EntryState.READY,
            "bytes": held_entry.bytes or entry.bytes,
            "ranks": held_entry.ranks or None,
            "verified": _PROVEN_LEVELS.get(held_entry.verify) or entry.verified,
            "revision": held_entry.revision,
        }
    )


def _mark_interrupted(snapshot: NodeSnapshot, entries: dict[EntryKey, CacheEntry]) -> dict[EntryKey, CacheEntry]:
    """Marks entries whose load was interrupted as partial: the next load resumes from their bytes."""
    active = {job.entry_key for job in snapshot.jobs if job.role == names.ROLE_LOAD and job.state is JobState.ACTIVE}
    active |= {
        held_entry.entry_key
        for pod in snapshot.consumers
        for held_entry in pod.held_entries
        if _may_load(snapshot, pod, held_entry)
    }
    return {
        key: entry.model_copy(update={"state": EntryState.PARTIAL})
        if entry.state is EntryState.LOADING and key not in active
        else entry
        for key, entry in entries.items()
    }


def _media_statuses(snapshot: NodeSnapshot, entries: Iterable[CacheEntry]) -> tuple[MediumStatus, ...]:
    before = {state.name: state for state in snapshot.status.media or ()}
    media = []
    for name in sorted(snapshot.installation.media, key=lambda medium: medium.value):
        reported = snapshot.reported_media.get(name)
        old = before.get(name) or MediumStatus(name=name)
        used = sum(entry.bytes for entry in entries if entry.medium is name and entry.state is EntryState.READY)
        used = min(used, MAX_BYTES)
        state = old.model_copy(update={"used_bytes": used})
        if reported:
            state = state.model_copy(
                update={"capacity_bytes": reported.capacity_bytes, "free_bytes": reported.free_bytes}
            )
        media.append(state)
    return tuple(media)


_PRESSURE_THRESHOLD = 0.05
"""Fraction of a medium's capacity; fewer free bytes set ``CapacityPressure``."""


def _column(count: int) -> str:
    """Returns a size for a column of kubectl, in which an empty text would mean that it is not known."""
    return human_bytes(count, "column") or "0"


def _status(snapshot: NodeSnapshot, entries: Mapping[EntryKey, CacheEntry]) -> NodeCacheStatus:
    listed, omitted = cut_entries(entries.values())
    media = _media_statuses(snapshot, listed)
    by_name = {state.name: state for state in media}
    memory, disk = by_name.get(Medium.MEMORY), by_name.get(Medium.DISK)
    tight = [
        state.name.value
        for state in media
        if state.capacity_bytes and state.free_bytes < state.capacity_bytes * _PRESSURE_THRESHOLD
    ]
    ready = Observation("Ready", status=True, reason=ConditionReason.NODE_READY, message="Loads can run here.")
    if not snapshot.node.ready:
        ready = Observation(
            "Ready", status=False, reason=ConditionReason.NODE_NOT_READY, message="The node is not ready."
        )
    pressure = Observation(
        "CapacityPressure",
        status=False,
        reason=ConditionReason.ROOM_LEFT,
        message="At least 5% of each medium is free.",
    )
    if tight:
        message = f"Less than 5% is free on {', '.join(tight)}: delete unneeded ModelWeights, or enlarge the medium."
        pressure = Observation("CapacityPressure", status=True, reason=ConditionReason.ALMOST_FULL, message=message)
    observed = [ready, pressure]
    if omitted:
        message = f"{omitted} entries don't fit into this record: they are not evicted until others are gone."
        observed.append(
            Observation("RecordTruncated", status=True, reason=ConditionReason.TOO_MANY_ENTRIES, message=message)
        )
    return NodeCacheStatus(
        bootID=snapshot.node.boot_id or None,
        media=media or None,
        entries=listed or None,
        summary=NodeCacheSummary(
            memory_used=_column(memory.used_bytes) if memory else "",
            memory_free=_column(memory.free_bytes) if memory and memory.capacity_bytes else "",
            disk_used=_column(disk.used_bytes) if disk else "",
            entries=sum(entry.state is EntryState.READY and entry.image is None for entry in listed),
            loading=sum(entry.state is EntryState.LOADING for entry in listed),
        ),
        conditions=conditions.merge(
            snapshot.status.conditions or (), observed, now=units.format_time(snapshot.now), generation=None
        ),
    )
