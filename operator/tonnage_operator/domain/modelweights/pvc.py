"""What lies in a PersistentVolumeClaim: the one load into it, and the Jobs that empty what nobody needs there.

There is no record of a claim as there is of a node. Jobs are the record: that of a load stays when it is done, and that
of a cleanup as long as the revision is among those that could be gone back to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator.api import names
from tonnage_operator.domain import naming, units
from tonnage_operator.domain.conditions import Event
from tonnage_operator.domain.nodecache.eviction import MAX_CLEANUP_ATTEMPTS
from tonnage_operator.domain.observed import job_results
from tonnage_operator.domain.observed.job import JobState
from tonnage_operator.domain.reasons import EventReason
from tonnage_operator.domain.specs.jobs import build_pvc_cleanup_job

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage_operator.api.status import SeenRevision
    from tonnage_operator.domain.modelweights.snapshot import Snapshot
    from tonnage_operator.domain.observed.job import Job
    from tonnage_operator.domain.observed.model_weights import ModelWeights

CAUSE_UNREFERENCED: Final = "Unreferenced"
CAUSE_DELETED: Final = "Deleted"

_CLEANUP_START_TIMEOUT: Final = 60.0
"""Seconds for which a deleted object waits for a cleanup that can't start: its claim may be gone, or held elsewhere."""


@dataclass(frozen=True)
class ClaimCleanup:
    """What becomes of revisions that aren't used any more."""

    apply: tuple[dict[str, Any], ...] = ()
    delete: tuple[Job, ...] = ()
    keys_being_emptied: frozenset[str] = frozenset()
    """Cache keys that must not be loaded yet: they are being emptied."""
    kept_job_uids: frozenset[str] = frozenset()
    """Uids of load Jobs that stay, since what they brought isn't emptied yet."""
    requeue_after: float | None = None


def _latest_cleanup_jobs(snapshot: Snapshot, cause: str) -> dict[str, Job]:
    """Returns the latest cleanup Job for each set of entries."""
    found: dict[str, Job] = {}
    for job in snapshot.jobs:
        if job.role == names.ROLE_CLEANUP and job.cause == cause:
            before = found.get(job.key)
            if before is None or before.attempt < job.attempt:
                found[job.key] = job
    return found


def _entry(key: str) -> str:
    return key.rpartition("/")[2]


def _entries_in_use(snapshot: Snapshot) -> set[str]:
    """Returns the entries in the claim that pods or other objects use. Pods elsewhere have a claim of their own."""
    weights = snapshot.weights
    used = {
        naming.cache_entry_name(held_entry.revision, weights.spec.cache.layout)
        for pod in snapshot.consumers
        if not pod.is_terminal and pod.namespace == weights.namespace
        for held_entry in pod.held_entries
        if held_entry.uid == weights.uid
    }
    return used | snapshot.shared_entries


def plan_claim_cleanup(snapshot: Snapshot, wanted: Iterable[SeenRevision | None]) -> ClaimCleanup:
    """Returns how the claim gets rid of revisions that are neither wanted nor used by a pod or another object."""
    weights, held = snapshot.weights, _entries_in_use(snapshot)
    needed = {weights.key(seen.revision, snapshot.installation) for seen in wanted if seen}
    past = {weights.key(seen.revision, snapshot.installation) for seen in weights.status.history or ()}
    loads = [job for job in snapshot.jobs if job.role == names.ROLE_LOAD and job.key not in needed]
    cleanups = _latest_cleanup_jobs(snapshot, CAUSE_UNREFERENCED)
    known = past | cleanups.keys() | {job.key for job in loads}
    stale = {key for key in known - needed if _entry(key) not in held}
    apply, waits = [], []
    for key in sorted(stale):
        job = cleanups.get(key)
        if job is None:
            apply.append(_build_cleanup_job(snapshot, (key,), 1, CAUSE_UNREFERENCED))
        elif job.state is JobState.FAILED and job.attempt < MAX_CLEANUP_ATTEMPTS:
            if (wait := snapshot.retry_delay(job)) > 0:
                waits.append(wait)
            else:
                apply.append(_build_cleanup_job(snapshot, (key,), job.attempt + 1, CAUSE_UNREFERENCED))
    # What a load may have brought is known by its Job, until there is one that empties it.
    kept_jobs = [job for job in loads if job.key not in cleanups]
    remembered = past | {job.key for job in loads}
    obsolete = [
        job
        for job in snapshot.jobs
        if job.role == names.ROLE_CLEANUP
        and not job.deleting
        and (
            job is not cleanups.get(job.key)
            or job.key not in stale
            or (job.state is not JobState.ACTIVE and job.key not in remembered)
        )
    ]
    return ClaimCleanup(
        apply=() if weights.spec.suspend else tuple(apply),
        delete=tuple(obsolete),
        keys_being_emptied=frozenset(needed & cleanups.keys()),
        kept_job_uids=frozenset(job.uid for job in kept_jobs),
        requeue_after=min(waits, default=None),
    )


def _build_cleanup_job(snapshot: Snapshot, keys: Iterable[str], attempt: int, cause: str) -> dict[str, Any]:
    return build_pvc_cleanup_job(
        snapshot.weights, snapshot.installation, keys=tuple(keys), attempt=attempt, cause=cause
    )


@dataclass(frozen=True)
class ClaimDeletion:
    """How far a deleted object is with its claim."""

    apply: tuple[dict[str, Any], ...] = ()
    waiting_message: str = ""
    requeue_after: float | None = None
    events: tuple[Event, ...] = ()
    """Told where the claim could not be emptied."""


def _known(weights: ModelWeights, snapshot: Snapshot) -> set[str]:
    status = weights.status
    seen = [each for each in (status.resolved, status.available, *(status.history or ())) if each]
    keys = {weights.key(each.revision, snapshot.installation) for each in seen}
    return keys | {job.key for job in snapshot.jobs if job.role == names.ROLE_LOAD}


def plan_claim_deletion(snapshot: Snapshot) -> ClaimDeletion:
    """Returns how the claim is emptied of a deleted object. It never holds the object for long."""
    job = max(_latest_cleanup_jobs(snapshot, CAUSE_DELETED).values(), key=lambda each: each.attempt, default=None)
    if job is None:
        held = _entries_in_use(snapshot)
        keys = sorted(key for key in _known(snapshot.weights, snapshot) if _entry(key) not in held)
        return (
            ClaimDeletion((_build_cleanup_job(snapshot, keys, 1, CAUSE_DELETED),), _waiting_message(snapshot))
            if keys
            else ClaimDeletion()
        )
    match job.state:
        case JobState.ACTIVE:
            return _await_cleanup(snapshot, job)
        case JobState.FAILED:
            return _retry_cleanup(snapshot, job)
    return ClaimDeletion()


def _retry_cleanup(snapshot: Snapshot, job: Job) -> ClaimDeletion:
    if job.attempt >= MAX_CLEANUP_ATTEMPTS:
        return ClaimDeletion(
            events=(_not_emptied_event(snapshot, job_results.job_failure(job, snapshot.pods.get(job.uid)).message),)
        )
    if (wait := snapshot.retry_delay(job)) > 0:
        return ClaimDeletion(waiting_message=_waiting_message(snapshot), requeue_after=wait)
    return ClaimDeletion(
        (_build_cleanup_job(snapshot, job.key.split(","), job.attempt + 1, CAUSE_DELETED),), _waiting_message(snapshot)
    )


def _await_cleanup(snapshot: Snapshot, job: Job) -> ClaimDeletion:
    failure = snapshot.start_failure(job)
    age = (snapshot.now - units.parse_time(job.start_time)).total_seconds() if job.start_time else 0.0
    if failure and age >= _CLEANUP_START_TIMEOUT:
        return ClaimDeletion(events=(_not_emptied_event(snapshot, failure.message),))
    return ClaimDeletion(
        waiting_message=_waiting_message(snapshot), requeue_after=max(1.0, _CLEANUP_START_TIMEOUT - age)
    )


def _waiting_message(snapshot: Snapshot) -> str:
    return f"Emptying what claim {snapshot.weights.spec.cache.claim_name} holds of it."


def _not_emptied_event(snapshot: Snapshot, why: str) -> Event:
    message = f"Claim {snapshot.weights.spec.cache.claim_name} still holds what it had of it: {why}"
    return Event(EventReason.CLAIM_NOT_EMPTIED, message[:1000], key=snapshot.weights.uid, warning=True)
