"""Fills an entry: reads indexes, builds the blueprint, transfers and publishes. The caller holds the load lock."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from tonnage.cache import commit
from tonnage.cache.cgroups import usable_cores
from tonnage.cache.filesystem import make_directory, translate_os_errors
from tonnage.cache.journal import Journal
from tonnage.cache.medium import BY_ADVICE, check_free_space, inspect_medium
from tonnage.loading import manifest_builder, resume
from tonnage.loading.cache_hit import missing_objects
from tonnage.loading.indexes import read_indexes
from tonnage.planning.blueprint import Blueprint, build_blueprint
from tonnage.source.presigned_refresh import refresh_targets
from tonnage.source.request_target import STALL_SECONDS
from tonnage.transfer.concurrency import choose_concurrency
from tonnage.transfer.coordinator import transfer
from tonnage.transfer.transfer_spec import TransferSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tonnage.cache.entry import Entry
    from tonnage.cache.manifest import Manifest
    from tonnage.contract import Plan, Progress
    from tonnage.source.resolve import ResolvedObject, ResolvedRevision
    from tonnage.transfer.transfer_spec import DiscardedTensor, FetchedRange, TransferResult


@dataclass(frozen=True, slots=True)
class FillResult:
    """The result of the transfer, and the published manifest."""

    manifest: Manifest
    outcome: TransferResult
    segments: int


def fill_entry(
    plan: Plan,
    entry: Entry,
    resolved: ResolvedRevision,
    *,
    existing_manifest: Manifest | None,
    environment: Mapping[str, str],
    deadline: float | None,
    on_progress: Callable[[Progress], None],
    canceled: Callable[[], bool],
    on_retry: Callable[[], None],
    lock_descriptors: Sequence[int],
) -> FillResult:
    """Loads the objects that the entry lacks, and publishes them.

    Args:
        plan: The plan.
        entry: The entry, recovered; the caller holds its load lock.
        resolved: The revision.
        existing_manifest: The manifest of the files already published; None if there are none.
        environment: Environment variables for the worker processes, such as proxies.
        deadline: ``time.monotonic()`` at which to fail; None for no limit.
        on_progress: Called with the progress.
        canceled: Polled; return True to cancel.
        on_retry: Called for each retry of a request for an index.
        lock_descriptors: Descriptors of the entry's locks, which workers keep open while they write.

    Raises:
        TonnageError: The load failed. Data transferred so far is on disk and in the journal.
    """
    items = missing_objects(existing_manifest, resolved)
    objects = read_indexes(resolved, items, deadline=deadline, canceled=canceled, on_retry=on_retry)
    identity = resume.journal_identity(items)
    journal = Journal.open(entry.journal_path)
    segment_size = plan.limits.segment_size
    if journal is not None and journal.header.revision == resolved.revision:
        segment_size = journal.header.segment_size
    blueprint = build_blueprint(
        objects,
        layout=plan.layout,
        segment_size=segment_size,
        computed_buffers=plan.computed_buffers,
        revision=resolved.revision,
        digest=resolved.digest,
    )
    header = resume.build_journal_header(
        blueprint, revision=resolved.revision, segment_size=segment_size, identity=identity
    )
    completed_records: list[FetchedRange | DiscardedTensor] = []
    if journal is not None and journal.header.is_compatible_with(header):
        completed_records = resume.valid_records(
            resume.read_records(journal),
            blueprint,
            entry.partial_model_dir,
            after_reboot=journal.header.boot_id != header.boot_id,
        )
    if journal is not None:
        journal.close()
    commit.begin_partial(entry, keep_existing=bool(completed_records))
    needed = max(0, blueprint.file_bytes - allocated_bytes(entry.partial_model_dir))
    check_free_space(entry.path, needed, min_free=plan.limits.min_free)
    with Journal.create(
        entry.journal_path, header, [msgspec.msgpack.encode(record) for record in completed_records]
    ) as journal:
        paths = make_files(entry, blueprint)
        outcome = transfer(
            TransferSpec(
                blueprint=blueprint,
                paths=paths,
                targets=[item.target for item in items],
                refresh_targets=lambda: refresh_targets(plan, items, environment),
                credential_indexes=[item.source for item in items],
                credentials=resolved.providers,
                verify=plan.verify,
                concurrency=choose_concurrency(plan.limits, size=blueprint.source_bytes, cores=usable_cores()),
                environment=environment,
                bandwidth=plan.limits.bandwidth,
                deadline=deadline,
                stall_seconds=int(environment.get("TONNAGE_STALL_SECONDS", "") or STALL_SECONDS),
                huge_pages=inspect_medium(entry.path).pages == BY_ADVICE,
                journal_records=completed_records,
                pass_fds=lock_descriptors,
                on_record=lambda record: journal.append(msgspec.msgpack.encode(record)),
                on_progress=on_progress,
                canceled=canceled,
            )
        )
    manifest = _publish(plan, entry, resolved, items, blueprint, outcome)
    return FillResult(
        manifest,
        outcome,
        sum(objects[segment.object_index].tensors_index is not None for segment in blueprint.segments),
    )


def _publish(
    plan: Plan,
    entry: Entry,
    resolved: ResolvedRevision,
    items: Sequence[ResolvedObject],
    blueprint: Blueprint,
    outcome: TransferResult,
) -> Manifest:
    manifest, table = manifest_builder.build_manifest_and_table(
        resolved=resolved,
        loaded=items,
        blueprint=blueprint,
        headers=outcome.headers,
        verified=outcome.verify_levels,
        requested_level=plan.verify,
        created=time.time(),
    )
    published = entry.read_published()
    if published is not None:
        manifest, table = manifest_builder.merge_manifests(published.manifest, published.table, manifest, table)
    return commit.publish(entry, manifest, table)


def make_files(entry: Entry, blueprint: Blueprint) -> list[str]:
    """Creates the blueprint's files in the partial directory, with size and prefix, and returns their paths.

    Existing files of the right size keep their contents.

    Raises:
        CacheNotWritable: A file can't be created.
        InsufficientSpace: The medium is full.
    """
    paths = []
    for file in blueprint.files:
        path = entry.partial_model_dir / file.path
        for folder in reversed(path.relative_to(entry.partial_model_dir).parents):
            make_directory(entry.partial_model_dir / folder)
        with translate_os_errors(f"{path} can't be created"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                if os.fstat(descriptor).st_size != file.size:
                    os.ftruncate(descriptor, 0)
                    os.ftruncate(descriptor, file.size)
                at = 0
                while at < len(file.prefix):
                    at += os.pwrite(descriptor, file.prefix[at:], at)
            finally:
                os.close(descriptor)
        paths.append(str(path))
    return paths


def allocated_bytes(folder: Path) -> int:
    """Returns the bytes allocated on the medium for files below ``folder``."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
