"""What one ``ModelWeights`` needs: which Jobs should be there, and what its status says.

Level-based: the answer depends on what is, never on what happened. Doing it twice, or half of it before a crash, leads
to the same end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Delivery
from tonnage_operator.domain import claim_volumes, loads, outcomes, resolving, telling
from tonnage_operator.domain.facts import JobState
from tonnage_operator.domain.world import MOUNT_PATIENCE, POD_PATIENCE

if TYPE_CHECKING:
    from tonnage_operator.api.status import ModelWeightsStatus
    from tonnage_operator.domain.conditions import Event
    from tonnage_operator.domain.facts import Job
    from tonnage_operator.domain.world import World


@dataclass(frozen=True)
class Decision:
    """What to do, in this order: post events, apply Jobs, write the status, delete Jobs.

    What is deleted was on record before, so a crash in between repeats a step and never skips one. What is told and
    deleted with the next status may wait for it.
    """

    status: ModelWeightsStatus
    apply: tuple[dict[str, Any], ...] = ()
    delete: tuple[Job, ...] = ()
    events: tuple[Event, ...] = ()
    with_status: tuple[Event, ...] = ()
    """Events about nodes that became warm."""
    delete_with_status: tuple[Job, ...] = ()
    """Load Jobs that succeeded: those events tell of them."""
    wake_after: float | None = None
    """Seconds until something is due by time alone; None: nothing is."""


def decide(world: World) -> Decision:
    """Returns what a ``ModelWeights`` that is not being deleted needs."""
    weights = world.weights
    if problem := telling.unacceptable(weights, world.installation):
        status = telling.refused_status(world, problem)
        return Decision(status, events=telling.status_events(weights, status))
    resolution = resolving.resolve(world)
    load = loads.plan_loads(world, resolution)
    if resolution.staged and load.staged_complete:
        resolution = resolution.moved(weights.generation)
        load = loads.plan_loads(world, resolution)
    status = telling.status(world, resolution, load)
    due = [each for each in (resolution.wake_after, load.wake_after) if each is not None]
    due += [POD_PATIENCE - age for job in world.jobs if 0 <= (age := world.podless(job)) < POD_PATIENCE]
    due += [MOUNT_PATIENCE - age for job in world.jobs if 0 <= (age := world.unmade(job)) < MOUNT_PATIENCE]
    due += [rest for job in world.jobs if (rest := outcomes.unsettled(job, world.pods.get(job.uid), world.now))]
    return Decision(
        status=status,
        apply=(*resolution.apply, *load.apply),
        delete=(*resolution.delete, *(job for job in load.delete if job.state is not JobState.SUCCEEDED)),
        events=(*resolution.events, *load.events, *telling.status_events(weights, status)),
        with_status=load.completions,
        delete_with_status=tuple(job for job in load.delete if job.state is JobState.SUCCEEDED),
        wake_after=max(0.5, min(due)) if due else None,
    )


@dataclass(frozen=True)
class Farewell:
    """What an object that is being deleted needs."""

    delete: tuple[Job, ...] = ()
    waiting: str = ""
    """Why it can't go yet; empty: the finalizer may go."""
    apply: tuple[dict[str, Any], ...] = ()
    events: tuple[Event, ...] = ()
    wake_after: float | None = None


def decide_farewell(world: World) -> Farewell:
    """Returns which Jobs go, and whether anything still holds the object.

    Entries are emptied by the decision about each node, which drops the object from the entry when that is done or
    can't be done (the node is not ready, or pods use the entry). So this one just looks whether it is named anywhere.
    """
    weights = world.weights
    if weights.spec.cache.delivery is Delivery.CLAIM:
        leaving = claim_volumes.leave(world)
        going = tuple(job for job in world.jobs if job.role != names.ROLE_CLEANUP and not job.deleting)
        return Farewell(going, leaving.waiting, leaving.apply, leaving.left, leaving.wake_after)
    shared = weights.spec.cache.delivery is Delivery.HOST_PATH
    kept = [job for job in world.jobs if job.role == names.ROLE_LOAD and shared and not world.is_recorded(job)]
    going = tuple(job for job in world.jobs if job not in kept and not job.deleting)
    named = sorted(node for node in world.caches.naming(weights.ref) if node in world.nodes)
    waiting = ""
    if kept:
        waiting = f"Waiting until {len(kept)} loads are on record, so that their bytes get removed."
    elif named:
        waiting = f"Emptying its cache entries on {len(named)} nodes: {', '.join(named[:5])}."
    return Farewell(going, waiting)
