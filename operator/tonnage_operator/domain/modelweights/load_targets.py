"""The next step for each target of a load (a node or a claim), progress of active loads, and their events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tonnage.contract.sizes import human_bytes
from tonnage_operator.api.modelweights import Delivery, Verify
from tonnage_operator.api.nodecache import EntryKey
from tonnage_operator.api.status import LoadProgress, NodeFailure
from tonnage_operator.domain import naming, units
from tonnage_operator.domain.conditions import MESSAGE_LIMIT, Event
from tonnage_operator.domain.nodecache.capacity import LoadRequest, has_room
from tonnage_operator.domain.observed import job_results
from tonnage_operator.domain.observed.job import JobState
from tonnage_operator.domain.peers.feeding import count_feedable_loads, is_holder
from tonnage_operator.domain.reasons import EventReason, FailureReason
from tonnage_operator.domain.specs.jobs import build_load_job

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tonnage import contract
    from tonnage_operator.api.base import Body
    from tonnage_operator.api.status import SeenRevision
    from tonnage_operator.domain.modelweights.snapshot import Snapshot
    from tonnage_operator.domain.observed.job import Job
    from tonnage_operator.domain.observed.node import Node


@dataclass
class TargetScan:
    """Accumulates the state of the targets while ``loads`` iterates over them."""

    failures: list[NodeFailure] = field(default_factory=list)
    active: list[Job] = field(default_factory=list)
    awaiting_record: int = 0
    first_attempts: list[Node | None] = field(default_factory=list)
    retries: list[tuple[Node | None, int]] = field(default_factory=list)
    retry_delays: list[float] = field(default_factory=list)
    kept_job_uids: set[str] = field(default_factory=set)
    ready: int = 0
    """Number of desired targets that have the goal revision."""
    unschedulable: int = 0
    """Number of active loads whose pod is unschedulable: they don't use the source."""
    holders: int = 0
    """Number of nodes that feed others; 0 without peers."""


def classify_target(
    snapshot: Snapshot, goal: SeenRevision, scan: TargetScan, node: Node | None, job: Job | None
) -> None:
    """Adds the next step of a target that isn't warm to ``scan``. ``node`` is None for a claim."""
    if job is None:
        scan.first_attempts.append(node)
        return
    if job.state is JobState.ACTIVE and snapshot.must_be_replaced(job, lambda: _build(snapshot, goal, node, 1)):
        scan.retries.append((node, job.attempt + 1))
        return
    scan.kept_job_uids.add(job.uid)
    pod = snapshot.pods.get(job.uid)
    if job.state is JobState.SUCCEEDED:
        scan.awaiting_record += 1
    elif job.state is JobState.ACTIVE:
        scan.active.append(job)
        if start_failure := snapshot.start_failure(job):
            since = pod.created if pod else job.start_time or snapshot.timestamp
            scan.failures.append(_failure(job, start_failure, since))
            scan.unschedulable += start_failure.reason == FailureReason.LOADER_UNSCHEDULABLE
        else:
            before = [
                each for each in snapshot.weights.status.failures or () if each.node == job.target and not each.pod
            ]
            scan.failures.extend(before if job.attempt > 1 else ())
    else:
        failed = _failure(job, job_results.job_failure(job, pod), job.finished_time or snapshot.timestamp)
        scan.failures.append(failed.model_copy(update={"next_attempt_time": snapshot.next_attempt_time(job) or None}))
        delay = snapshot.retry_delay(job)
        if delay > 0:
            scan.retry_delays.append(delay)
        else:
            scan.retries.append((node, job.attempt + 1))


def _failure(job: Job, failure: job_results.Failure, time: str) -> NodeFailure:
    return NodeFailure(node=job.target, reason=failure.reason, message=failure.message, attempts=job.attempt, time=time)


@dataclass(frozen=True)
class NextLoads:
    """The loads that begin now, and those that need room first."""

    jobs: tuple[Body, ...] = ()
    requests: Mapping[str, LoadRequest] = field(default_factory=dict)
    """Room to reserve, by node; also for the Jobs, until they exist."""
    waiting: Mapping[str, str] = field(default_factory=dict)
    """Why a node has no room, by node."""


def count_holders(snapshot: Snapshot, key: EntryKey, warm: Iterable[str], active: Iterable[Job]) -> int:
    """Returns how many nodes feed others: those with a ready peer that have the entry, or enough of it.

    A loader that doesn't ask for peers neither uses them nor can others believe its bytes: its source has no hashes.

    Args:
        snapshot: The observed state.
        key: The entry.
        warm: The nodes that have it.
        active: The Jobs that load it.
    """
    asking = snapshot.asking_nodes(key)
    entries = [snapshot.entry(node, *key) for node in warm if node in snapshot.peer_nodes]
    found = sum(entry is not None and entry.verified in _HASHED for entry in entries)
    for job in active:
        if job.target in snapshot.peer_nodes and job.target in asking:
            report = snapshot.reports.get(job.uid)
            progress = report.progress if report else None
            found += progress is not None and is_holder(progress.loaded_bytes, progress.total_bytes)
    return found


MAX_NEW_JOBS: Final = 32
"""Jobs that one decision begins. Building one takes about a millisecond, in which no report is answered; the Jobs that
were created enqueue the object for the next ones."""
_HASHED: Final = {Verify.CRC32.value, Verify.SHA256.value}
"""Levels of verification of entries whose bytes loaders believe when a peer sends them."""


def plan_next_loads(snapshot: Snapshot, goal: SeenRevision, scan: TargetScan) -> NextLoads:
    """Returns the loads to begin now: up to ``maxConcurrentNodes``, or as many as ``scan.holders`` feed.

    First attempts come before retries.

    Where room has to be reserved, a Job is created once the node's ``NodeCache`` has the reservation. A load that waits
    for room doesn't hold up those on other nodes.
    """
    weights = snapshot.weights
    if weights.spec.suspend:
        return NextLoads()
    medium = weights.medium(snapshot.installation)
    key = EntryKey(weights.key(goal.revision, snapshot.installation), medium)
    on_nodes = weights.spec.cache.delivery is Delivery.HOST_PATH
    reserves = on_nodes and snapshot.installation.limits(medium).needs_reservation
    allowed = count_feedable_loads(weights.spec.placement.max_concurrent_nodes, scan.holders)
    slots = max(0, allowed - (len(scan.active) - scan.unschedulable))
    jobs: list[Body] = []
    requests: dict[str, LoadRequest] = {}
    waiting: dict[str, str] = {}
    for node, attempt in (*((node, 1) for node in scan.first_attempts), *scan.retries):
        if node and reserves:
            request = LoadRequest(key, goal.total_bytes, snapshot.timestamp, frozenset({weights.ref}))
            shortage = snapshot.shortages.get(node.name, {}).get(key)
            if not has_room(snapshot.entry(node.name, *key), goal.total_bytes):
                if shortage:
                    waiting[node.name] = shortage.describe(node.name, weights.namespace)
                    requests[node.name] = request
                elif slots:
                    slots -= 1
                    requests[node.name] = request
                continue
            requests[node.name] = request
        if slots and len(jobs) < MAX_NEW_JOBS:
            slots -= 1
            jobs.append(_build(snapshot, goal, node, attempt))
    return NextLoads(tuple(jobs), requests, waiting)


def _build(snapshot: Snapshot, goal: SeenRevision, node: Node | None, attempt: int) -> Body:
    return build_load_job(snapshot.weights, goal, snapshot.installation, node=node, attempt=attempt)


def slowest_progress(snapshot: Snapshot, goal: SeenRevision, active: Sequence[Job]) -> LoadProgress | None:
    """Returns the progress of the slowest active load; None if there is none."""
    if not active:
        return None
    reports = ((job, snapshot.reports.get(job.uid)) for job in active)
    reported = [(job, report.progress) for job, report in reports if report and report.progress]
    if not reported:
        node = min(job.target for job in active)
        return LoadProgress(node=node, percent=-1, total_bytes=goal.total_bytes)
    job, now = min(reported, key=_slowest_first)
    remaining = round(now.remaining_seconds)
    return LoadProgress(
        node=job.target,
        percent=_percent(now),
        loaded_bytes=now.loaded_bytes,
        total_bytes=now.total_bytes,
        bytes_per_second=round(now.bytes_per_second),
        remaining_seconds=remaining,
        eta=units.human_seconds(remaining),
    )


def _slowest_first(reported: tuple[Job, contract.Progress]) -> tuple[float, int, str]:
    job, now = reported
    left = round(now.remaining_seconds)
    return (-left if left >= 0 else float("-inf"), _percent(now), job.target)


def _percent(now: contract.Progress) -> int:
    return min(100, now.loaded_bytes * 100 // now.total_bytes) if now.total_bytes else -1


_WRONG_BYTES: Final = "WrongBytes"
"""The loader's word for a peer whose bytes did not match a hash. That others are busy or away is normal."""


def wrong_peer_events(snapshot: Snapshot, done: Sequence[Job]) -> tuple[Event, ...]:
    """Returns a warning for each peer that sent wrong bytes to a load, for the first few."""
    found = {
        (job.target, dropped.node): dropped.why
        for job in done
        if (report := job_results.final_report(snapshot.pods.get(job.uid)))
        for dropped in report.dropped_peers
        if dropped.reason == _WRONG_BYTES and dropped.node in snapshot.nodes
    }
    return tuple(
        Event(
            EventReason.PEER_DROPPED,
            f"The peer of {peer} sent wrong bytes to {node}, which took them from elsewhere: {why}"[:MESSAGE_LIMIT],
            key=f"{peer} {node}",
            warning=True,
        )
        for (node, peer), why in sorted(found.items())[:MAX_SEPARATE_EVENTS]
    )


MAX_SEPARATE_EVENTS = 5
"""If more nodes become warm together, they share one event."""


def completion_events(snapshot: Snapshot, goal: SeenRevision, done: Sequence[Job]) -> tuple[Event, ...]:
    """Returns the events for targets that became warm."""
    if len(done) <= MAX_SEPARATE_EVENTS:
        return tuple(completion_event(snapshot, goal, job) for job in done)
    nodes = sorted(job.target for job in done)
    named = f"{', '.join(nodes[:MAX_SEPARATE_EVENTS])} and {len(nodes) - MAX_SEPARATE_EVENTS} more nodes"
    reports = [report for job in done if (report := job_results.final_report(snapshot.pods.get(job.uid)))]
    timing = f", the slowest in {max(report.seconds for report in reports):.1f} s" if reports else ""
    key = naming.short_digest(sorted(job.uid for job in done))
    return (Event(EventReason.LOAD_COMPLETED, f"{named} have {goal.revision}{timing}.", key=key),)


def completion_event(snapshot: Snapshot, goal: SeenRevision, job: Job) -> Event:
    """Returns the event for a target that became warm."""
    report = job_results.final_report(snapshot.pods.get(job.uid))
    details = ""
    if report and report.seconds > 0 and report.downloaded_bytes:
        rate = human_bytes(round(report.downloaded_bytes / report.seconds), "column")
        details = f": {human_bytes(report.downloaded_bytes, 'column')} in {report.seconds:.1f} s, {rate}/s"
        if report.peer_bytes:
            details += f", {human_bytes(min(report.peer_bytes, report.downloaded_bytes), 'column')} of it from peers"
    return Event(EventReason.LOAD_COMPLETED, f"{job.target} has {goal.revision}{details}.", key=job.uid)
