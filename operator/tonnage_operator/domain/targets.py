"""What a target of a load, a node or a claim, needs next; how far those are that load, and what is told of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tonnage_operator.api.status import LoadProgress, NodeFailure
from tonnage_operator.domain import identity, outcomes, units
from tonnage_operator.domain.conditions import Event
from tonnage_operator.domain.facts import JobState
from tonnage_operator.domain.jobs import load_job
from tonnage_operator.domain.reasons import EventReason, FailureReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tonnage import contract
    from tonnage_operator.api.status import SeenRevision
    from tonnage_operator.domain.facts import Job, Node
    from tonnage_operator.domain.world import World


@dataclass
class Tally:
    """What is found on the way through the targets."""

    failures: list[NodeFailure] = field(default_factory=list)
    active: list[Job] = field(default_factory=list)
    recording: int = 0
    fresh: list[Node | None] = field(default_factory=list)
    again: list[tuple[Node | None, int]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    keep: set[str] = field(default_factory=set)
    ready: int = 0
    """Desired targets that have the goal."""
    unplaced: int = 0
    """Active ones for which there is no room on their node: they ask nothing of the source."""


def latest(found: Iterable[Job]) -> dict[str, Job]:
    """Returns the Job with the highest attempt for each target."""
    newest: dict[str, Job] = {}
    for job in found:
        if job.node not in newest or newest[job.node].attempt < job.attempt:
            newest[job.node] = job
    return newest


def sort_in(world: World, tally: Tally, node: Node | None, job: Job | None) -> None:
    """Says what a target that isn't warm needs next."""
    if job is None:
        tally.fresh.append(node)
        return
    tally.keep.add(job.uid)
    pod = world.pods.get(job.uid)
    if job.state is JobState.SUCCEEDED:
        tally.recording += 1
    elif job.state is JobState.ACTIVE:
        tally.active.append(job)
        if waiting := world.waiting(job):
            since = pod.created if pod else job.started or world.time
            tally.failures.append(_failure(job, waiting, since))
            tally.unplaced += waiting.reason == FailureReason.LOADER_UNSCHEDULABLE
        else:
            before = [each for each in world.weights.status.failures or () if each.node == job.node]
            tally.failures.extend(before if job.attempt > 1 else ())
    else:
        tally.failures.append(_failure(job, outcomes.failure_of(job, pod), job.finished or world.time))
        wait = world.due(job)
        if wait > 0:
            tally.waits.append(wait)
        else:
            tally.again.append((node, job.attempt + 1))


def _failure(job: Job, failure: outcomes.Failure, time: str) -> NodeFailure:
    return NodeFailure(node=job.node, reason=failure.reason, message=failure.message, attempts=job.attempt, time=time)


def start(world: World, goal: SeenRevision, tally: Tally) -> tuple[dict[str, Any], ...]:
    """Returns the Jobs to start now: nodes that never failed first, as many as may load at once."""
    weights = world.weights
    if weights.spec.suspend:
        return ()
    room = max(0, weights.spec.placement.max_concurrent_nodes - (len(tally.active) - tally.unplaced))
    candidates = [*((node, 1) for node in tally.fresh), *tally.again][:room]
    return tuple(
        load_job(weights, goal, world.installation, node=node, attempt=attempt) for node, attempt in candidates
    )


def slowest(world: World, goal: SeenRevision, active: Sequence[Job]) -> LoadProgress | None:
    """Returns how far the slowest of the loads is; None while none runs."""
    if not active:
        return None
    reported = [(job, report) for job in active if (report := world.reports.get(job.uid)) and report.progress]
    if not reported:
        node = min(job.node for job in active)
        return LoadProgress(node=node, percent=-1, total_bytes=goal.total_bytes)
    return min((_progress(job, report) for job, report in reported), key=_hurry)


def _hurry(progress: LoadProgress) -> tuple[float, int, str]:
    left = progress.remaining_seconds
    return (-left if left >= 0 else float("-inf"), progress.percent, progress.node)


def _progress(job: Job, report: contract.Report) -> LoadProgress:
    now = report.progress
    total = now.total_bytes if now else 0
    loaded = now.loaded_bytes if now else 0
    remaining = round(now.remaining_seconds) if now else -1
    return LoadProgress(
        node=job.node,
        percent=min(100, loaded * 100 // total) if total else -1,
        loaded_bytes=loaded,
        total_bytes=total,
        bytes_per_second=round(now.bytes_per_second) if now else 0,
        remaining_seconds=remaining,
        eta=units.human_seconds(remaining),
    )


MANY = 5
"""Nodes that are told of one by one when they become warm together; more of them share one event."""


def completions(world: World, goal: SeenRevision, done: Sequence[Job]) -> tuple[Event, ...]:
    """Tells of targets that became warm."""
    if len(done) <= MANY:
        return tuple(completion(world, goal, job) for job in done)
    nodes = sorted(job.node for job in done)
    named = f"{', '.join(nodes[:MANY])} and {len(nodes) - MANY} more nodes"
    reports = [report for job in done if (report := outcomes.last_words(world.pods.get(job.uid)))]
    told = f", the slowest in {max(report.seconds for report in reports):.1f} s" if reports else ""
    key = identity.digest(sorted(job.uid for job in done))
    return (Event(EventReason.LOAD_COMPLETED, f"{named} have {goal.revision}{told}.", key=key),)


def completion(world: World, goal: SeenRevision, job: Job) -> Event:
    """Tells of one target that became warm."""
    report = outcomes.last_words(world.pods.get(job.uid))
    told = ""
    if report and report.seconds > 0 and report.downloaded_bytes:
        rate = units.human_bytes(round(report.downloaded_bytes / report.seconds))
        told = f": {units.human_bytes(report.downloaded_bytes)} in {report.seconds:.1f} s, {rate}/s"
    return Event(EventReason.LOAD_COMPLETED, f"{job.node} has {goal.revision}{told}.", key=job.uid)
