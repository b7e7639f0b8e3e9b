"""Decides the Jobs and the status of one ``ModelWeights``.

Level-based: the decision depends only on the observed state, not on past events. Applying it twice, or only in part
before a crash, leads to the same result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tonnage_operator.domain.modelweights import loads, revisions, status_builder
from tonnage_operator.domain.modelweights.rollout import rollout_events
from tonnage_operator.domain.modelweights.snapshot import POD_CREATION_TIMEOUT, VOLUME_MOUNT_TIMEOUT
from tonnage_operator.domain.observed import job_results
from tonnage_operator.domain.observed.job import JobState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage_operator.api.base import Body
    from tonnage_operator.api.status import ModelWeightsStatus
    from tonnage_operator.domain.conditions import Event
    from tonnage_operator.domain.modelweights.snapshot import Snapshot
    from tonnage_operator.domain.nodecache.capacity import LoadRequest
    from tonnage_operator.domain.observed.job import Job


@dataclass(frozen=True)
class Decision:
    """What to do, in this order: post events, apply Jobs, write the status, delete Jobs.

    A Job is deleted after its result is recorded, so a crash repeats a step and never skips one. Deferred events and
    deletions may be delayed until the next status write.
    """

    status: ModelWeightsStatus
    apply: tuple[Body, ...] = ()
    delete: tuple[Job, ...] = ()
    events: tuple[Event, ...] = ()
    deferred_events: tuple[Event, ...] = ()
    """For nodes that became warm."""
    deferred_deletes: tuple[Job, ...] = ()
    """Load Jobs that succeeded; the deferred events are about them."""
    load_requests: Mapping[str, LoadRequest] = field(default_factory=dict)
    """Room that has to be reserved, by node."""
    requeue_after: float | None = None
    """Seconds until the object must be reconciled again without a change; None: never."""


def decide(snapshot: Snapshot) -> Decision:
    """Returns the decision about an object that is not being deleted."""
    weights = snapshot.weights
    if problem := status_builder.find_spec_problem(weights, snapshot.installation):
        new_status = status_builder.build_rejected_status(snapshot, problem)
        return Decision(new_status, events=status_builder.status_events(weights, new_status))
    resolution = revisions.decide_revision(snapshot)
    load_decision = loads.decide_loads(snapshot, resolution)
    if resolution.staged and load_decision.may_switch:
        resolution = resolution.promoted(weights.generation, snapshot.timestamp)
        load_decision = loads.decide_loads(snapshot, resolution)
    new_status = status_builder.build_status(snapshot, resolution, load_decision)
    delays = [each for each in (resolution.requeue_after, load_decision.requeue_after) if each is not None]
    delays += [
        POD_CREATION_TIMEOUT - age
        for job in snapshot.jobs
        if 0 <= (age := snapshot.seconds_without_pod(job)) < POD_CREATION_TIMEOUT
    ]
    delays += [
        VOLUME_MOUNT_TIMEOUT - age
        for job in snapshot.jobs
        if 0 <= (age := snapshot.seconds_waiting_for_mounts(job)) < VOLUME_MOUNT_TIMEOUT
    ]
    delays += [
        remaining_seconds
        for job in snapshot.jobs
        if (remaining_seconds := job_results.remaining_grace_period(job, snapshot.pods.get(job.uid), snapshot.now))
    ]
    return Decision(
        status=new_status,
        apply=(*resolution.apply, *load_decision.apply),
        delete=(*resolution.delete, *(job for job in load_decision.delete if job.state is not JobState.SUCCEEDED)),
        events=(
            *resolution.events,
            *load_decision.events,
            *rollout_events(weights.status.rollout, new_status.rollout, resolution),
            *status_builder.status_events(weights, new_status),
        ),
        load_requests=load_decision.requests,
        deferred_events=load_decision.completion_events,
        deferred_deletes=tuple(job for job in load_decision.delete if job.state is JobState.SUCCEEDED),
        requeue_after=max(0.5, min(delays)) if delays else None,
    )
