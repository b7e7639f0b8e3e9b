"""What lies in a PersistentVolumeClaim: the one load into it, and the Jobs that empty what nobody needs there.

There is no record of a claim as there is of a node. Jobs are the record: that of a load stays when it is done, and that
of a cleanup as long as the revision is among those that could be gone back to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator.api import names
from tonnage_operator.domain import identity, outcomes, units
from tonnage_operator.domain.conditions import Event
from tonnage_operator.domain.eviction import GIVE_UP_AFTER
from tonnage_operator.domain.facts import JobState
from tonnage_operator.domain.jobs import claim_cleanup_job
from tonnage_operator.domain.reasons import EventReason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage_operator.api.status import SeenRevision
    from tonnage_operator.domain.facts import Job
    from tonnage_operator.domain.weights import Weights
    from tonnage_operator.domain.world import World

STALE: Final = "Unreferenced"
DELETED: Final = "Deleted"

_PATIENCE: Final = 60.0
"""Seconds for which a deleted object waits for a cleanup that can't start: its claim may be gone, or held elsewhere."""


@dataclass(frozen=True)
class Rotation:
    """What becomes of revisions that aren't used any more."""

    apply: tuple[dict[str, Any], ...] = ()
    delete: tuple[Job, ...] = ()
    busy: frozenset[str] = frozenset()
    """Cache keys that must not be loaded yet: they are being emptied."""
    records: frozenset[str] = frozenset()
    """Uids of load Jobs that stay, since what they brought isn't emptied yet."""
    wake_after: float | None = None


def _cleanups(world: World, cause: str) -> dict[str, Job]:
    """Returns the latest cleanup Job for each set of entries."""
    found: dict[str, Job] = {}
    for job in world.jobs:
        if job.role == names.ROLE_CLEANUP and job.cause == cause:
            before = found.get(job.key)
            if before is None or before.attempt < job.attempt:
                found[job.key] = job
    return found


def _entry(key: str) -> str:
    return key.rpartition("/")[2]


def _held(world: World) -> set[str]:
    """Returns the entries in the claim that pods or other objects use. Pods elsewhere have a claim of their own."""
    weights = world.weights
    used = {
        identity.entry(claim.revision, weights.spec.cache.layout)
        for pod in world.consumers
        if not pod.over and pod.namespace == weights.namespace
        for claim in pod.claims
        if claim.uid == weights.uid
    }
    return used | world.neighbours


def rotate(world: World, wanted: Iterable[SeenRevision | None]) -> Rotation:
    """Returns how the claim gets rid of revisions that are neither wanted nor used by a pod or another object."""
    weights, held = world.weights, _held(world)
    needed = {weights.key(seen.revision, world.installation) for seen in wanted if seen}
    past = {weights.key(seen.revision, world.installation) for seen in weights.status.history or ()}
    loads = [job for job in world.jobs if job.role == names.ROLE_LOAD and job.key not in needed]
    cleanups = _cleanups(world, STALE)
    known = past | cleanups.keys() | {job.key for job in loads}
    stale = {key for key in known - needed if _entry(key) not in held}
    apply, waits = [], []
    for key in sorted(stale):
        job = cleanups.get(key)
        if job is None:
            apply.append(_cleanup(world, (key,), 1, STALE))
        elif job.state is JobState.FAILED and job.attempt < GIVE_UP_AFTER:
            if (wait := world.due(job)) > 0:
                waits.append(wait)
            else:
                apply.append(_cleanup(world, (key,), job.attempt + 1, STALE))
    # What a load may have brought is known by its Job, until there is one that empties it.
    records = [job for job in loads if job.key not in cleanups]
    remembered = past | {job.key for job in loads}
    over = [
        job
        for job in world.jobs
        if job.role == names.ROLE_CLEANUP
        and not job.deleting
        and (
            job is not cleanups.get(job.key)
            or job.key not in stale
            or (job.state is not JobState.ACTIVE and job.key not in remembered)
        )
    ]
    return Rotation(
        apply=() if weights.spec.suspend else tuple(apply),
        delete=tuple(over),
        busy=frozenset(needed & cleanups.keys()),
        records=frozenset(job.uid for job in records),
        wake_after=min(waits, default=None),
    )


def _cleanup(world: World, keys: Iterable[str], attempt: int, cause: str) -> dict[str, Any]:
    return claim_cleanup_job(world.weights, world.installation, keys=tuple(keys), attempt=attempt, cause=cause)


@dataclass(frozen=True)
class Leaving:
    """How far a deleted object is with its claim."""

    apply: tuple[dict[str, Any], ...] = ()
    waiting: str = ""
    wake_after: float | None = None
    left: tuple[Event, ...] = ()
    """Told where the claim could not be emptied."""


def _known(weights: Weights, world: World) -> set[str]:
    status = weights.status
    seen = [each for each in (status.resolved, status.available, *(status.history or ())) if each]
    keys = {weights.key(each.revision, world.installation) for each in seen}
    return keys | {job.key for job in world.jobs if job.role == names.ROLE_LOAD}


def leave(world: World) -> Leaving:
    """Returns how the claim is emptied of a deleted object. It never holds the object for long."""
    job = max(_cleanups(world, DELETED).values(), key=lambda each: each.attempt, default=None)
    if job is None:
        held = _held(world)
        keys = sorted(key for key in _known(world.weights, world) if _entry(key) not in held)
        return Leaving((_cleanup(world, keys, 1, DELETED),), _waiting(world)) if keys else Leaving()
    match job.state:
        case JobState.ACTIVE:
            return _be_patient(world, job)
        case JobState.FAILED:
            return _try_again(world, job)
    return Leaving()


def _try_again(world: World, job: Job) -> Leaving:
    if job.attempt >= GIVE_UP_AFTER:
        return Leaving(left=(_left(world, outcomes.failure_of(job, world.pods.get(job.uid)).message),))
    if (wait := world.due(job)) > 0:
        return Leaving(waiting=_waiting(world), wake_after=wait)
    return Leaving((_cleanup(world, job.key.split(","), job.attempt + 1, DELETED),), _waiting(world))


def _be_patient(world: World, job: Job) -> Leaving:
    failure = world.waiting(job)
    age = (world.now - units.parse_time(job.started)).total_seconds() if job.started else 0.0
    if failure and age >= _PATIENCE:
        return Leaving(left=(_left(world, failure.message),))
    return Leaving(waiting=_waiting(world), wake_after=max(1.0, _PATIENCE - age))


def _waiting(world: World) -> str:
    return f"Emptying what claim {world.weights.spec.cache.claim_name} holds of it."


def _left(world: World, why: str) -> Event:
    message = f"Claim {world.weights.spec.cache.claim_name} still holds what it had of it: {why}"
    return Event(EventReason.CLAIM_NOT_EMPTIED, message[:1000], key=world.weights.uid, warning=True)
