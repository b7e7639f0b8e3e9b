"""Starts to fill an entry: what takes long overlaps. Imports little, so that the first request goes out early."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tonnage.cache.cgroups import usable_cores
from tonnage.loading.cache_hit import missing_objects
from tonnage.loading.source_objects import read_missing_objects
from tonnage.transfer.concurrency import choose_concurrency
from tonnage.transfer.worker_process import WorkerHost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from tonnage.cache.entry import Entry, Published
    from tonnage.cache.partial import PartialDirectory
    from tonnage.contract import Plan, Progress
    from tonnage.loading.fill import FillResult
    from tonnage.loading.peers.session import LoadPeers
    from tonnage.loading.streaming import StreamGate
    from tonnage.source.resolve import ResolvedRevision

MAX_REPLANS = 2
"""How often a load is planned again because an index or header was damaged on the way."""


def start_fill(
    plan: Plan,
    entry: Entry,
    resolved: ResolvedRevision,
    *,
    existing: Published | None,
    earlier: PartialDirectory | None,
    environment: Mapping[str, str],
    deadline: float | None,
    on_progress: Callable[[Progress], None],
    on_note: Callable[[str], None],
    canceled: Callable[[], bool],
    on_retry: Callable[[], None],
    lock_descriptors: Sequence[int],
    gate: StreamGate | None,
    may_fork: bool,
) -> FillResult:
    """Loads the objects that the entry lacks, and publishes them: see ``fill_entry``.

    Workers and the process from which they are forked start while this one reads indexes and imports the rest.

    Args:
        plan: The plan.
        entry: The entry; the caller holds its load lock.
        resolved: The revision.
        existing: As for ``fill_entry``.
        earlier: As for ``fill_entry``.
        environment: Environment variables with proxies, for the worker processes, and settings.
        deadline: ``time.monotonic()`` at which to fail; None for no limit.
        on_progress: Called with the progress.
        on_note: Called with a sentence for the report.
        canceled: Polled; return True to cancel.
        on_retry: Called for each retry of a request for an index.
        lock_descriptors: Descriptors of the entry's locks, which workers keep open while they write.
        gate: As for ``fill_entry``.
        may_fork: As for ``run_plan``.

    Raises:
        TonnageError: The load failed.
    """
    with (
        WorkerHost(pass_fds=lock_descriptors, environment=environment, may_fork=may_fork) as worker_host,
        _open_peers(plan, entry, resolved, environment) as peers,
    ):
        missing = missing_objects(None if existing is None else existing.manifest, resolved)
        size = sum(item.pin.size for item in missing)
        worker_host.prepare(choose_concurrency(plan.limits, size=size, cores=usable_cores()).workers)
        replans, allocates_memory = 0, False
        while True:
            source = read_missing_objects(
                entry,
                resolved,
                missing,
                existing,
                peers if not replans else None,  # their headers may be what is damaged
                level=plan.verify,
                may_replan=replans < MAX_REPLANS,
                deadline=deadline,
                canceled=canceled,
                on_retry=on_retry,
            )
            # After the first requests, because it takes a while.
            from tonnage.loading.fill import PlanOutdated, RoomTaken, fill_entry

            try:
                return fill_entry(
                    plan,
                    entry,
                    resolved,
                    source,
                    existing=existing,
                    earlier=earlier,
                    environment=environment,
                    deadline=deadline,
                    on_progress=on_progress,
                    on_note=on_note,
                    canceled=canceled,
                    worker_host=worker_host,
                    gate=gate,
                    peers=peers,
                    allocates_memory=allocates_memory,
                )
            except PlanOutdated as error:
                on_retry()
                replans += 1
                earlier = error.partial
            except RoomTaken:
                allocates_memory = True
                earlier = None


def _open_peers(
    plan: Plan, entry: Entry, resolved: ResolvedRevision, environment: Mapping[str, str]
) -> AbstractContextManager[LoadPeers | None]:
    """Returns the peers of a load; None if the plan has none."""
    if plan.peers is None or plan.reporting is None:
        return contextlib.nullcontext()
    from tonnage.loading.peers.session import find_peers  # most loads have none

    return find_peers(plan, plan.peers, plan.reporting, entry, resolved, environment)
