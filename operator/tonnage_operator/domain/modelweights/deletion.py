"""Finalization: what has to happen before the finalizer of a deleted ``ModelWeights`` is removed.

Entries on nodes are evicted by the decision about each node. Entries in a PersistentVolumeClaim are removed by a
cleanup Job of the object itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Delivery, Retention
from tonnage_operator.domain import naming, units
from tonnage_operator.domain.conditions import MESSAGE_LIMIT, Event
from tonnage_operator.domain.modelweights.pvc import (
    CAUSE_DELETED,
    build_claim_cleanup_job,
    entries_in_use,
    latest_cleanups,
)
from tonnage_operator.domain.observed import job_results
from tonnage_operator.domain.observed.job import JobState
from tonnage_operator.domain.reasons import EventReason
from tonnage_operator.domain.retry import MAX_CLEANUP_ATTEMPTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage_operator.api.base import Body
    from tonnage_operator.domain.modelweights.snapshot import Snapshot
    from tonnage_operator.domain.observed.job import Job

_CLEANUP_START_TIMEOUT: Final = 60.0
"""Seconds after which deletion no longer waits for a cleanup Job that can't start: its claim may be deleted, or
attached to another node."""


@dataclass(frozen=True)
class Deletion:
    """What an object that is being deleted needs."""

    delete: tuple[Job, ...] = ()
    waiting_message: str = ""
    """Why the finalizer has to stay; empty: it can be removed."""
    apply: tuple[Body, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None


def plan_deletion(snapshot: Snapshot) -> Deletion:
    """Returns which Jobs to delete, and whether anything still requires the finalizer.

    The decision about a node removes the object from an entry's ``models`` when the entry has been evicted or can't be
    (the node is not ready, or pods use the entry). This function only checks whether any NodeCache still names the
    object.
    """
    weights = snapshot.weights
    if weights.spec.cache.delivery is Delivery.CLAIM:
        deletable = tuple(job for job in snapshot.jobs if job.role != names.ROLE_CLEANUP and not job.deleting)
        return replace(_plan_claim_deletion(snapshot), delete=deletable)
    shared = weights.spec.cache.delivery is Delivery.HOST_PATH
    unrecorded_loads = [
        job for job in snapshot.jobs if job.role == names.ROLE_LOAD and shared and not snapshot.is_recorded(job)
    ]
    deletable = tuple(job for job in snapshot.jobs if job not in unrecorded_loads and not job.deleting)
    referencing_nodes = sorted(
        node
        for node in {*snapshot.cache_index.nodes_referencing(weights.ref), *_nodes_without_release(snapshot)}
        if node in snapshot.nodes
    )
    waiting_message = ""
    if unrecorded_loads:
        waiting_message = (
            f"Waiting until the entries of {len(unrecorded_loads)} loads are on record, so that they can be evicted."
        )
    elif referencing_nodes:
        waiting_message = f"Evicting its entries on {len(referencing_nodes)} nodes: {', '.join(referencing_nodes[:5])}."
    return Deletion(deletable, waiting_message)


def _nodes_without_release(snapshot: Snapshot) -> set[str]:
    """Returns the nodes whose record doesn't show that the object released an entry.

    Such an entry was ``Evictable`` before the object referred to it. If the object were gone before the record shows
    its own retention, nothing would ever evict the entry.
    """
    weights = snapshot.weights
    if weights.spec.cache.retention is Retention.EVICTABLE:
        return set()
    return {
        node
        for key, medium in weights.released(snapshot.installation)
        for node, entry in snapshot.cache_index.nodes_with(key, medium).items()
        if entry.retention is Retention.EVICTABLE and not entry.models
    }


def _known_keys(snapshot: Snapshot) -> set[str]:
    weights, status = snapshot.weights, snapshot.weights.status
    seen = [each for each in (status.resolved, status.available, *(status.history or ())) if each]
    keys = {weights.key(each.revision, snapshot.installation) for each in seen}
    return keys | {job.key for job in snapshot.jobs if job.role == names.ROLE_LOAD}


def _plan_claim_deletion(snapshot: Snapshot) -> Deletion:
    """Returns how to remove the object's entries from its claim. This delays the deletion for a limited time only."""
    job = max(latest_cleanups(snapshot, CAUSE_DELETED).values(), key=lambda each: each.attempt, default=None)
    if job is None:
        held = entries_in_use(snapshot)
        keys = sorted(key for key in _known_keys(snapshot) if naming.entry_of(key) not in held)
        return _start_cleanup(snapshot, keys, 1) if keys else Deletion()
    match job.state:
        case JobState.ACTIVE:
            return _await_cleanup(snapshot, job)
        case JobState.FAILED:
            return _retry_cleanup(snapshot, job)
    return Deletion()


def _start_cleanup(snapshot: Snapshot, keys: Iterable[str], attempt: int) -> Deletion:
    job = build_claim_cleanup_job(snapshot, keys, attempt, CAUSE_DELETED)
    return Deletion(apply=(job,), waiting_message=_waiting_message(snapshot))


def _retry_cleanup(snapshot: Snapshot, job: Job) -> Deletion:
    if job.attempt >= MAX_CLEANUP_ATTEMPTS:
        return Deletion(
            events=(_not_emptied_event(snapshot, job_results.job_failure(job, snapshot.pods.get(job.uid)).message),)
        )
    if (wait := snapshot.retry_delay(job)) > 0:
        return Deletion(waiting_message=_waiting_message(snapshot), requeue_after=wait)
    return _start_cleanup(snapshot, job.key.split(","), job.attempt + 1)


def _await_cleanup(snapshot: Snapshot, job: Job) -> Deletion:
    failure = snapshot.start_failure(job)
    age = (snapshot.now - units.parse_time(job.start_time)).total_seconds() if job.start_time else 0.0
    if failure and age >= _CLEANUP_START_TIMEOUT:
        return Deletion(events=(_not_emptied_event(snapshot, failure.message),))
    return Deletion(waiting_message=_waiting_message(snapshot), requeue_after=max(1.0, _CLEANUP_START_TIMEOUT - age))


def _waiting_message(snapshot: Snapshot) -> str:
    return f"Removing its entries from PersistentVolumeClaim {snapshot.weights.spec.cache.claim_name}."


def _not_emptied_event(snapshot: Snapshot, why: str) -> Event:
    message = f"PersistentVolumeClaim {snapshot.weights.spec.cache.claim_name} still has its entries: {why}"
    return Event(EventReason.CLAIM_NOT_EMPTIED, message[:MESSAGE_LIMIT], key=snapshot.weights.uid, warning=True)
