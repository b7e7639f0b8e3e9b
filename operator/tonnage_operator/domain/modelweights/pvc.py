"""Removes unused revisions from a PersistentVolumeClaim.

A claim has no NodeCache. Its Jobs are the record: a finished load Job is kept, and a finished cleanup Job is kept as
long as its revision is one of the latest in ``status.history``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tonnage_operator.api import names
from tonnage_operator.domain import naming
from tonnage_operator.domain.observed.job import JobState, latest_attempts
from tonnage_operator.domain.retry import MAX_CLEANUP_ATTEMPTS
from tonnage_operator.domain.specs.jobs import build_pvc_cleanup_job

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage_operator.api.base import Body
    from tonnage_operator.api.status import SeenRevision
    from tonnage_operator.domain.modelweights.snapshot import Snapshot
    from tonnage_operator.domain.observed.job import Job

CAUSE_UNREFERENCED: Final = "Unreferenced"
CAUSE_DELETED: Final = "Deleted"

MAX_RECENT: Final = 2
"""Revisions of the history whose cleanup Jobs are kept as a record."""


@dataclass(frozen=True)
class ClaimCleanup:
    """Cleanup Jobs for unused revisions, and Jobs that are no longer needed as a record."""

    apply: tuple[Body, ...] = ()
    delete: tuple[Job, ...] = ()
    keys_being_emptied: frozenset[str] = frozenset()
    """Cache keys that must not be loaded until their cleanup is complete."""
    kept_job_uids: frozenset[str] = frozenset()
    """Uids of load Jobs whose entries have not been removed yet."""
    requeue_after: float | None = None


def latest_cleanups(snapshot: Snapshot, cause: str) -> dict[str, Job]:
    """Returns the latest cleanup Job with this cause, by its cache keys joined by commas."""
    jobs = (job for job in snapshot.jobs if job.role == names.ROLE_CLEANUP and job.cause == cause)
    return latest_attempts(jobs, key=lambda job: job.key)


def entries_in_use(snapshot: Snapshot) -> set[str]:
    """Returns the entries in the claim that pods or other objects use. Pods in other namespaces use their own claim."""
    weights = snapshot.weights
    used = {
        naming.cache_entry_name(held_entry.revision, weights.spec.cache)
        for pod in snapshot.consumers
        if not pod.is_terminal and pod.namespace == weights.namespace
        for held_entry in pod.held_entries
        if held_entry.uid == weights.uid
    }
    return used | snapshot.shared_entries


def plan_claim_cleanup(snapshot: Snapshot, wanted: Iterable[SeenRevision | None]) -> ClaimCleanup:
    """Returns how to remove revisions that are neither wanted nor used by a pod or another object."""
    weights, held = snapshot.weights, entries_in_use(snapshot)
    needed = {weights.key(seen.revision, snapshot.installation) for seen in wanted if seen}
    recent = (weights.status.history or ())[:MAX_RECENT]  # older ones were removed when they were recent
    past = {weights.key(seen.revision, snapshot.installation) for seen in recent}
    loads = [job for job in snapshot.jobs if job.role == names.ROLE_LOAD and job.key not in needed]
    cleanups = latest_cleanups(snapshot, CAUSE_UNREFERENCED)
    known = past | cleanups.keys() | {job.key for job in loads}
    stale = {key for key in known - needed if naming.entry_of(key) not in held}
    apply, waits = [], []
    for key in sorted(stale):
        job = cleanups.get(key)
        if job is None:
            apply.append(build_claim_cleanup_job(snapshot, (key,), 1, CAUSE_UNREFERENCED))
        elif job.state is JobState.FAILED and job.attempt < MAX_CLEANUP_ATTEMPTS:
            if (wait := snapshot.retry_delay(job)) > 0:
                waits.append(wait)
            else:
                apply.append(build_claim_cleanup_job(snapshot, (key,), job.attempt + 1, CAUSE_UNREFERENCED))
    # A load Job is the only record of its entry until there is a cleanup Job.
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


def build_claim_cleanup_job(snapshot: Snapshot, keys: Iterable[str], attempt: int, cause: str) -> Body:
    return build_pvc_cleanup_job(
        snapshot.weights, snapshot.installation, keys=tuple(keys), attempt=attempt, cause=cause
    )
