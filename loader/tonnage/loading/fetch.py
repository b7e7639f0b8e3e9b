"""Filling an entry: indexes, blueprint, journal, transfer, publishing. Under the entry's load lock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from tonnage.cache.cgroups import usable_cores
from tonnage.cache.journal import Journal
from tonnage.cache.medium import check_room
from tonnage.loading import records, resume
from tonnage.loading.hits import missing
from tonnage.loading.indexes import read_indexes
from tonnage.planning.blueprint import Blueprint, draw
from tonnage.source.renewal import renewed_targets
from tonnage.source.target import STALL_SECONDS
from tonnage.transfer.coordinator import transfer
from tonnage.transfer.job import Job
from tonnage.transfer.policy import concurrency

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tonnage.cache.entry import Entry
    from tonnage.cache.manifest import Manifest
    from tonnage.contract import Plan, Progress
    from tonnage.source.resolve import Resolved, ResolvedObject
    from tonnage.transfer.job import Done, Outcome, Undone


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was brought, and the manifest that says so now."""

    manifest: Manifest
    outcome: Outcome
    segments: int


def fetch(
    plan: Plan,
    entry: Entry,
    resolved: Resolved,
    *,
    held: Manifest | None,
    environment: Mapping[str, str],
    deadline: float | None,
    on_progress: Callable[[Progress], None],
    canceled: Callable[[], bool],
    keep: Sequence[int],
) -> Fetched:
    """Loads the objects that the entry lacks, and publishes them.

    Args:
        plan: How to load.
        entry: Recovered, and locked for loading by the caller.
        resolved: The revision.
        held: The manifest of what the entry has already; None if it is empty.
        environment: Of which the worker processes get proxies and the like.
        deadline: On the monotonic clock; None: no limit.
        on_progress: Told how it goes.
        canceled: Asked whether to give up.
        keep: Descriptors of the entry's locks, which workers hold open as long as they write.

    Raises:
        TonnageError: What was transferred until then is on disk, and in the journal.
    """
    items = missing(held, resolved)
    objects = read_indexes(resolved, items, deadline=deadline, canceled=canceled)
    identity = resume.identity_of(items)
    journal = Journal.open(entry.journal_path)
    segment_size = plan.limits.segment_size
    if journal is not None and journal.header.revision == resolved.revision:
        segment_size = journal.header.segment_size
    blueprint = draw(objects, layout=plan.layout, segment_size=segment_size)
    header = resume.header_of(blueprint, revision=resolved.revision, segment_size=segment_size, identity=identity)
    done: list[Done | Undone] = []
    if journal is not None and journal.header.same_plan(header):
        done = resume.trusted(
            resume.read_records(journal),
            blueprint,
            entry.partial_model,
            reread=journal.header.boot_id != header.boot_id,
        )
    if journal is not None:
        journal.close()
    entry.begin_partial(keep=bool(done))
    needed = max(0, blueprint.file_bytes - resume.allocated_bytes(entry.partial_model))
    check_room(entry.path, needed, min_free=plan.limits.min_free)
    with Journal.create(entry.journal_path, header, [msgspec.msgpack.encode(record) for record in done]) as journal:
        paths = resume.make_files(entry, blueprint)
        outcome = transfer(
            Job(
                blueprint=blueprint,
                paths=paths,
                targets=[item.target for item in items],
                renewed_targets=lambda: renewed_targets(plan, items, environment),
                sources=[item.source for item in items],
                credentials=resolved.providers,
                verify=plan.verify,
                concurrency=concurrency(plan.limits, size=blueprint.source_bytes, cores=usable_cores()),
                environment=environment,
                bandwidth=plan.limits.bandwidth,
                deadline=deadline,
                stall_seconds=int(environment.get("TONNAGE_STALL_SECONDS", "") or STALL_SECONDS),
                done=done,
                keep=keep,
                record=lambda record: journal.append(msgspec.msgpack.encode(record)),
                on_progress=on_progress,
                canceled=canceled,
            )
        )
    manifest = _publish(plan, entry, resolved, items, blueprint, outcome)
    return Fetched(manifest, outcome, sum(objects[part.object].tensors is not None for part in blueprint.segments))


def _publish(
    plan: Plan,
    entry: Entry,
    resolved: Resolved,
    items: Sequence[ResolvedObject],
    blueprint: Blueprint,
    outcome: Outcome,
) -> Manifest:
    manifest, table = records.manifest_and_table(
        resolved=resolved,
        loaded=items,
        blueprint=blueprint,
        headers=outcome.headers,
        verified=outcome.verified,
        wanted=plan.verify,
        created=time.time(),
    )
    published = entry.read_published()
    if published is not None:
        manifest, table = records.merged(published.manifest, published.table, manifest, table)
    return entry.publish(manifest, table)
