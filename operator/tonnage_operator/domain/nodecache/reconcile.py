"""Decides the ``NodeCache`` of one node, and the cleanup Jobs to start there.

The record is derived from Jobs and pods. It is stored in the NodeCache because Jobs and pods are deleted. Entries in
memory are dropped after a reboot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tonnage import contract
from tonnage.contract.ranks import merge_ranks
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium, Verify
from tonnage_operator.api.nodecache import CacheEntry, EntryState
from tonnage_operator.domain import naming, units
from tonnage_operator.domain.nodecache.artifacts import apply_artifacts
from tonnage_operator.domain.nodecache.capacity import LoadRequest, total_bytes
from tonnage_operator.domain.nodecache.eviction import plan_eviction
from tonnage_operator.domain.nodecache.record_limits import MAX_BYTES
from tonnage_operator.domain.nodecache.status import build_status, effective_limits
from tonnage_operator.domain.observed import job_results
from tonnage_operator.domain.observed.job import JobState, latest_attempts

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tonnage_operator.api.base import Body
    from tonnage_operator.api.nodecache import EntryKey, NodeCacheStatus
    from tonnage_operator.domain.nodecache.capacity import Shortage
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
    shortages: Mapping[EntryKey, Shortage] = field(default_factory=dict)
    """Loads for which there is no room."""
    reserves: bool = False
    """The status has new reservations that loads wait for, so it must be written at once."""


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
    requests = _collect_requests(snapshot, entries)
    entries = _mark_interrupted(snapshot, entries, {each.key for each in requests})
    limits = effective_limits(snapshot)
    eviction = plan_eviction(snapshot, entries, cleanups, requests, limits)
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
        return NodeDecision(None, delete=delete, shortages=eviction.shortages)
    delays = [*eviction.retry_delays]
    delays += [
        remaining_seconds
        for job in snapshot.jobs
        if (remaining_seconds := job_results.remaining_grace_period(job, snapshot.pods.get(job.uid), snapshot.now))
    ]
    return NodeDecision(
        build_status(snapshot, eviction),
        eviction.apply,
        delete,
        min(delays, default=None),
        shortages=eviction.shortages,
        reserves=any(
            entry.reserved_bytes > (entries[key].reserved_bytes if key in entries else 0)
            for key, entry in eviction.entries.items()
            if key.medium in limits and limits[key.medium].needs_reservation
        ),
    )


def _collect_requests(snapshot: NodeSnapshot, entries: Mapping[EntryKey, CacheEntry]) -> list[LoadRequest]:
    """Returns the loads that are running on the node, and those that objects want to begin there."""
    requests = [*snapshot.load_requests]
    for job in snapshot.jobs:
        if job.role == names.ROLE_LOAD and job.state is JobState.ACTIVE and job.entry_key in entries:
            size = _requested_bytes(snapshot, snapshot.pods.get(job.uid), job.key, job.bytes)
            requests.append(LoadRequest(job.entry_key, size, job.start_time, frozenset({job.model_ref})))
    for pod in snapshot.consumers:
        for held in pod.held_entries:
            ready = any(each.name == held.container and each.ready for each in pod.loaders)
            known = held.entry_key in entries and not held.is_artifacts
            if known and not ready and _may_load(snapshot, pod, held):
                size = _requested_bytes(snapshot, pod, held.key, held.bytes)
                requests.append(LoadRequest(held.entry_key, size, pod.created, frozenset({held.ref})))
    return [each for each in requests if each.key.medium in snapshot.installation.media]


def _requested_bytes(snapshot: NodeSnapshot, pod: Pod | None, key: str, size: int) -> int:
    """Returns the bytes of an entry, exactly if its loader has reported them."""
    return snapshot.reported_sizes.get((pod.uid, naming.entry_of(key)), size) if pod else size


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
                    "bytes": report.bytes if report else total_bytes(entry),
                    "reserved_bytes": 0,
                    "ranks": None,
                    "verified": _VERIFY_LEVELS.get(report.verified if report else "") or entry.verified,
                    "verified_by": (report.verified_by if report else "") or entry.verified_by,
                    "revision": (report.revision if report else "") or entry.revision,
                    "served_by": (report.served_by if report else "") or None,
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
            authorized = _is_authorized(snapshot, pod, held_entry)
            if held_entry.is_artifacts:
                continue
            is_new = key not in entries and (pod.is_terminal or not (authorized or _has_started(pod, held_entry)))
            if not held_entry.key or is_new:
                continue
            entry = entries.get(key) or _new_entry(key)
            if authorized and _has_loaded(snapshot, pod, held_entry):
                entry = _mark_loaded(entry, held_entry)
                report = _termination_report(pod, held_entry)
                if report and entry.state is EntryState.READY and entry.served_by is None and report.served_by:
                    entry = entry.model_copy(update={"served_by": report.served_by})
            elif _may_load(snapshot, pod, held_entry) and entry.state is EntryState.PARTIAL:
                entry = entry.model_copy(update={"state": EntryState.LOADING})
            if pod.created and pod.created > (entry.last_used_time or ""):
                entry = entry.model_copy(update={"last_used_time": pod.created})
            entries[key] = entry
    return entries


def _has_started(pod: Pod, held_entry: HeldEntry) -> bool:
    return any(each.name == held_entry.container and each.started for each in pod.loaders)


def _is_authorized(snapshot: NodeSnapshot, pod: Pod, held_entry: HeldEntry) -> bool:
    """Returns whether a ``ModelWeights`` authorizes the pod to use the entry, as it did at admission.

    No object refers to a revision that only groups of pods still have; the admission authorized it.
    """
    key = held_entry.entry_key
    only_of_groups = held_entry.group and not any(key in each.entries for each in snapshot.references)
    return bool(only_of_groups) or any(each.covers(key, pod.namespace) for each in snapshot.references)


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
    """Returns the outcome from the termination message, otherwise from the last report; None if unknown.

    Both are about an earlier run of a loader that was started again.
    """
    loader = next((each for each in pod.loaders if each.name == held_entry.container), None)
    if loader and loader.running and loader.restarts and not loader.ready:
        return None
    report = _termination_report(pod, held_entry)
    return (report and report.outcome) or snapshot.reported_outcomes.get((pod.uid, naming.entry_of(held_entry.key)))


def _termination_report(pod: Pod, held_entry: HeldEntry) -> contract.Report | None:
    loader = next((each for each in pod.loaders if each.name == held_entry.container), None)
    return job_results.termination_report(loader) if loader else None


def _mark_loaded(entry: CacheEntry, held_entry: HeldEntry) -> CacheEntry:
    """Returns the entry after a pod has loaded it."""
    if entry.state is EntryState.READY and entry.ranks:
        return entry.model_copy(update={"ranks": merge_ranks(entry.ranks, held_entry.ranks)})
    if entry.state in {EntryState.READY, EntryState.EVICTING}:
        return entry
    return entry.model_copy(
        update={
            "state": EntryState.READY,
            "bytes": held_entry.bytes or total_bytes(entry),
            "reserved_bytes": 0,
            "ranks": held_entry.ranks or None,
            "verified": _PROVEN_LEVELS.get(held_entry.verify) or entry.verified,
            "revision": held_entry.revision,
        }
    )


def _mark_interrupted(
    snapshot: NodeSnapshot, entries: dict[EntryKey, CacheEntry], requested: Collection[EntryKey]
) -> dict[EntryKey, CacheEntry]:
    """Marks entries whose load was interrupted as partial: the next load resumes from their bytes.

    What was reserved for it counts as used, because loaders allocate it before the first byte; a loader that failed has
    reported what it left. A reservation of which no load made use ends.
    """
    active = {job.entry_key for job in snapshot.jobs if job.role == names.ROLE_LOAD and job.state is JobState.ACTIVE}
    active |= {
        held_entry.entry_key
        for pod in snapshot.consumers
        for held_entry in pod.held_entries
        if _may_load(snapshot, pod, held_entry)
    }
    left = _bytes_left_by_failures(snapshot)
    after = {}
    for key, entry in entries.items():
        if entry.state is EntryState.LOADING and key not in active:
            size = left.get(key, total_bytes(entry))
            after[key] = entry.model_copy(
                update={"state": EntryState.PARTIAL, "bytes": min(size, MAX_BYTES), "reserved_bytes": 0}
            )
        elif not entry.reserved_bytes or key in requested or key in active:
            after[key] = entry
        elif entry.state is EntryState.READY:  # further ranks
            after[key] = entry.model_copy(update={"bytes": total_bytes(entry), "reserved_bytes": 0})
        elif entry.bytes:
            after[key] = entry.model_copy(update={"reserved_bytes": 0})
    return after


def _bytes_left_by_failures(snapshot: NodeSnapshot) -> dict[EntryKey, int]:
    """Returns the bytes that the last failed load of each entry has left, as far as its loader reported them."""
    loads = (job for job in snapshot.jobs if job.role == names.ROLE_LOAD)
    found = {}
    for key, job in latest_attempts(loads, key=lambda job: job.entry_key).items():
        report = job_results.final_report(snapshot.pods.get(job.uid))
        if job.state is JobState.FAILED and report and report.reason:
            found[key] = report.bytes
    for pod in snapshot.consumers:
        for held in pod.held_entries:
            for loader in pod.loaders:
                report = job_results.termination_report(loader)
                if loader.name == held.container and not held.is_artifacts and report and report.reason:
                    found[held.entry_key] = min(report.bytes, held.bytes)
    return found
