"""Fills an entry: builds the blueprint, transfers and publishes. The caller holds the load lock."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec

from tonnage.cache import commit
from tonnage.cache.capacity import reserve_capacity, sees_whole_cache
from tonnage.cache.cgroups import usable_cores
from tonnage.cache.filesystem import FileIdentity, make_directory, remove_tree, translate_os_errors
from tonnage.cache.journal import Journal, read_journal
from tonnage.cache.medium import MEMORY_FILESYSTEMS, inspect_medium
from tonnage.cache.partial import create_partial, take_over
from tonnage.cache.reservation import reserve
from tonnage.cache.stream import reset_stream
from tonnage.contract import Verify
from tonnage.errors import CacheDamaged, CacheInUse, CacheNotWritable, InsufficientSpace, InternalError
from tonnage.loading import manifest_builder, resume
from tonnage.loading.folder import check_folder
from tonnage.loading.indexes import HeadDamaged
from tonnage.loading.pointer_files import pointer_notes
from tonnage.loading.streaming import StreamWriter
from tonnage.planning.blueprint import EntryShape
from tonnage.planning.blueprint_builder import build_blueprint
from tonnage.planning.object_checks import cut_segments
from tonnage.record import Record
from tonnage.source.presigned_refresh import refresh_targets
from tonnage.source.request_target import STALL_SECONDS
from tonnage.source.resolve import no_checksum
from tonnage.transfer.concurrency import choose_concurrency
from tonnage.transfer.coordinator import transfer
from tonnage.transfer.transfer_spec import TransferResult, TransferSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tonnage.cache.entry import Entry, Published
    from tonnage.cache.journal import JournalContents, JournalHeader
    from tonnage.cache.manifest import Manifest, TensorTable
    from tonnage.cache.partial import PartialDirectory
    from tonnage.contract import Plan, Progress
    from tonnage.format.tensor_header import TensorHeader
    from tonnage.loading.peers.headers_file import KnownHeaders
    from tonnage.loading.peers.session import LoadPeers
    from tonnage.loading.source_objects import SourceObjects
    from tonnage.loading.streaming import StreamGate
    from tonnage.planning.blueprint import Blueprint, SourceObject
    from tonnage.planning.segments import Segment
    from tonnage.source.resolve import ResolvedObject, ResolvedRevision
    from tonnage.transfer.peer_view import PeerFields
    from tonnage.transfer.transfer_spec import JournalRecord
    from tonnage.transfer.worker_process import WorkerHost


class PlanOutdated(Exception):  # control flow: the load is planned again
    """An object begins with other bytes than those by which it was planned; ``partial`` keeps what has arrived."""

    def __init__(self, partial: PartialDirectory) -> None:
        super().__init__()
        self.partial = partial


class RoomTaken(Exception):  # control flow: the load begins again, and allocates before it writes
    """Another program has taken the room of this load while parts arrived. What it had is given back."""


class FillResult(Record, frozen=True):
    """The result of the transfer, the published manifest, and the digest of the headers file; empty: none."""

    manifest: Manifest
    outcome: TransferResult
    segments: int
    headers_digest: str = ""


def fill_entry(
    plan: Plan,
    entry: Entry,
    resolved: ResolvedRevision,
    source: SourceObjects,
    *,
    existing: Published | None,
    earlier: PartialDirectory | None,
    environment: Mapping[str, str],
    deadline: float | None,
    on_progress: Callable[[Progress], None],
    on_note: Callable[[str], None],
    canceled: Callable[[], bool],
    worker_host: WorkerHost,
    gate: StreamGate | None,
    peers: LoadPeers | None = None,
    allocates_memory: bool = False,
) -> FillResult:
    """Loads the objects that the entry lacks, and publishes them.

    Args:
        plan: The plan.
        entry: The entry; the caller holds its load lock.
        resolved: The revision.
        source: The objects that the entry lacks.
        existing: Manifest and tensors of the files already published; None if there are none.
        earlier: What an earlier load has left, and no loader is at work in; None if there is nothing.
        environment: Environment variables with settings of the load.
        deadline: ``time.monotonic()`` at which to fail; None for no limit.
        on_progress: Called with the progress.
        on_note: Called with a sentence for the report.
        canceled: Polled; return True to cancel.
        worker_host: Starts the worker processes, which keep the entry's locks while they write.
        gate: Opened when readers can start; None if this load's caller has none.
        peers: The nodes that may have what the entry lacks; None: only the source is asked.
        allocates_memory: Whether the pages of a memory-backed medium are allocated before the first part, too.

    Raises:
        PlanOutdated: The load must be planned again.
        RoomTaken: Another program has taken the room while parts arrived. Load again with ``allocates_memory``.
        TonnageError: The load failed. Data transferred so far is on disk and in the journal, unless space was missing.
    """
    items, objects, checks, known = source.items, source.sources, source.checks, source.known
    journal = None if earlier is None else read_journal(earlier.journal_path)
    shape = _entry_shape(plan, resolved, journal)
    blueprint = check_folder(
        entry,
        cut_segments(
            build_blueprint(objects, shape),
            checks,
        ),
        on_note,
    )
    header = resume.build_journal_header(
        blueprint,
        revision=resolved.revision,
        segment_size=shape.segment_size,
        identity=resume.journal_identity(items, checks),
    )
    partial, records = _begin(
        entry,
        earlier,
        _matching(journal, header),
        blueprint,
        on_progress=on_progress,
        deadline=deadline,
        canceled=canceled,
    )
    paths = [partial.model_dir / file.path for file in blueprint.files]

    def build_manifest(
        headers: Mapping[tuple[int, int], TensorHeader], outcome: TransferResult
    ) -> tuple[Manifest, TensorTable]:
        manifest, table = manifest_builder.build_manifest_and_table(
            resolved=resolved,
            loaded=items,
            blueprint=blueprint,
            headers=headers,
            verified=outcome.verify_levels,
            object_checks=outcome.object_checks,
            unverified=outcome.unverified.values(),
            requested_level=plan.verify,
            created=time.time(),
            non_tensor_checksums=outcome.non_tensor_bytes.checksums(
                {number: file.prefix for number, file in enumerate(blueprint.files)}
            ),
        )
        if existing is None:
            return manifest, table
        return manifest_builder.merge_manifests(existing.manifest, existing.table, manifest, table)

    writer = StreamWriter(
        entry,
        partial.model_dir,
        published=None if existing is None else existing.manifest,
        build_manifest=lambda: build_manifest(manifest_builder.unknown_headers(blueprint), TransferResult()),
        gate=gate,
        on_note=on_note,
        enabled=not plan.verify_on_hit,
    )

    may_begin_again = False

    def is_canceled() -> bool:
        writer.poll()
        return canceled()

    try:
        made = make_files(partial, blueprint)
        medium = inspect_medium(entry.path)
        _reserve_capacity(
            plan,
            entry,
            partial,
            blueprint_bytes(blueprint) + (0 if existing is None else existing.manifest.bytes),
            on_progress=on_progress,
            on_note=on_note,
            deadline=deadline,
            canceled=canceled,
        )
        allocated = reserve(
            entry,
            paths,
            empty=not records,
            allocates=allocates_memory or medium.filesystem not in MEMORY_FILESYSTEMS,
            min_free=max(plan.limits.min_free, medium.capacity_bytes * plan.limits.min_free_percent // 100),
            note=on_note,
            canceled=canceled,
        )
        may_begin_again = not (allocated or allocates_memory)
        write_prefixes(partial, blueprint)
        writer.poll()  # so that the order of parts is right from the first
        if peers is not None:
            peers.show(partial, blueprint, items, objects, is_whole=existing is None)
        with Journal.create(
            partial.journal_path, header, [msgspec.msgpack.encode(record) for record in records]
        ) as open_journal:
            outcome = transfer(
                TransferSpec(
                    blueprint=blueprint,
                    paths=[str(path) for path in paths],
                    targets=[item.target for item in items],
                    refresh_targets=lambda: refresh_targets(plan, items, environment),
                    credential_indexes=[item.source for item in items],
                    credentials=resolved.providers,
                    verify=plan.verify,
                    checks=checks,
                    concurrency=choose_concurrency(plan.limits, size=blueprint.source_bytes, cores=usable_cores()),
                    worker_host=worker_host,
                    bandwidth=plan.limits.bandwidth,
                    deadline=deadline,
                    stall_seconds=int(environment.get("TONNAGE_STALL_SECONDS", "") or STALL_SECONDS),
                    pages=medium.pages,
                    **_peer_fields(peers, known, is_whole=existing is None),
                    journal_records=records,
                    on_record=lambda record: open_journal.append(msgspec.msgpack.encode(record)),
                    on_file=lambda number: writer.add(blueprint.files[number].path),
                    on_mismatch=source.head_check,
                    on_progress=on_progress,
                    canceled=is_canceled,
                    has_readers=lambda: writer.begun,
                )
            )
        _require_level(plan.verify, outcome, objects)
        manifest, table = build_manifest(outcome.headers, outcome)
        notes = (*manifest.notes, *pointer_notes(partial.model_dir, blueprint.files))
        manifest = msgspec.structs.replace(manifest, notes=notes)
        digest = _finish_peers(
            peers, items, objects, blueprint.segments, outcome, is_whole=existing is None, on_note=on_note
        )
        manifest = commit.publish(
            entry, partial, manifest, table, current=None if existing is None else existing.manifest, made=made
        )
    except HeadDamaged:
        raise PlanOutdated(partial) from None
    except (CacheInUse, InsufficientSpace) as error:  # give back what this load has: another one may need it
        remove_tree(partial.path)
        reset_stream(entry, None if existing is None else existing.manifest)
        if may_begin_again and isinstance(error, InsufficientSpace):
            raise RoomTaken from error
        raise
    except (CacheDamaged, CacheNotWritable, InternalError) as error:
        if partial.path.exists():
            raise
        raise CacheInUse(
            f"Another process has removed or taken over {partial.path}, where this load wrote its files. Locks may not "
            "work on this file system."
        ) from error
    writer.finish(manifest, table)
    return FillResult(
        manifest,
        outcome,
        sum(objects[segment.object_index].tensors_index is not None for segment in blueprint.segments),
        digest,
    )


def _peer_fields(peers: LoadPeers | None, known: KnownHeaders | None, *, is_whole: bool) -> PeerFields:
    """Returns the fields of a transfer's input that are about peers."""
    if peers is None:
        return {}
    return {"peers": peers.finder, "known_bytes": known.ranges if known else {}, "collects_headers": is_whole}


def _finish_peers(
    peers: LoadPeers | None,
    items: Sequence[ResolvedObject],
    objects: Sequence[SourceObject],
    segments: Sequence[Segment],
    outcome: TransferResult,
    *,
    is_whole: bool,
    on_note: Callable[[str], None],
) -> str:
    """Ends what the load shows to peers; returns the digest of its headers file, which only a whole load has."""
    if peers is None:
        return ""
    for note in peers.notes(outcome):
        on_note(note)
    return peers.keep_headers(items, objects, segments, outcome.collected) if is_whole else ""


def _entry_shape(plan: Plan, resolved: ResolvedRevision, journal: JournalContents | None) -> EntryShape:
    """Returns the entry's shape, with the segments of an earlier load of the revision, whose journal counts on them."""
    shape = EntryShape.of_plan(plan, revision=resolved.revision, digest=resolved.digest)
    if journal is not None and journal.header.revision == resolved.revision:
        return msgspec.structs.replace(shape, segment_size=journal.header.segment_size)
    return shape


def _matching(journal: JournalContents | None, header: JournalHeader) -> JournalContents | None:
    return journal if journal is not None and journal.header == header else None


def _begin(
    entry: Entry,
    earlier: PartialDirectory | None,
    journal: JournalContents | None,
    blueprint: Blueprint,
    *,
    on_progress: Callable[[Progress], None],
    deadline: float | None,
    canceled: Callable[[], bool],
) -> tuple[PartialDirectory, list[JournalRecord]]:
    """Returns the directory of this load, and the records of an earlier one whose bytes are in it."""
    records: list[JournalRecord] = []
    if earlier is not None and journal is not None:
        earlier = take_over(entry, earlier)
        records = resume.valid_records(
            resume.decode_records(journal.records),
            blueprint,
            earlier.model_dir,
            on_progress=on_progress,
            deadline=deadline,
            canceled=canceled,
        )
    if earlier is not None and records:
        return earlier, records
    if earlier is not None:
        remove_tree(earlier.path)
    return create_partial(entry), []


def _require_level(level: Verify, outcome: TransferResult, objects: Sequence[SourceObject]) -> None:
    """Checks that files without hashes were verified at the level, which only ``BEST`` leaves to what the source has.

    Raises:
        NoChecksum: One was not.
    """
    if level is Verify.BEST:
        return
    for index, source in enumerate(objects):
        if (source.is_safetensors or source.unhashed) and outcome.verify_levels.get(
            index, Verify.SIZE
        ).strength < level.strength:
            raise no_checksum(source.label, None, level)


def blueprint_bytes(blueprint: Blueprint) -> int:
    """Returns the bytes of the files that a load writes."""
    return sum(file.size for file in blueprint.files)


def _reserve_capacity(
    plan: Plan,
    entry: Entry,
    partial: PartialDirectory,
    required_bytes: int,
    *,
    on_progress: Callable[[Progress], None],
    on_note: Callable[[str], None],
    deadline: float | None,
    canceled: Callable[[], bool],
) -> None:
    """Reserves a part of the cache's capacity, if it is limited: by counting, or where only the operator can, there."""
    capacity = plan.limits.capacity
    if not capacity:
        return
    if sees_whole_cache(entry):
        reserve_capacity(
            entry, partial, required_bytes, capacity=capacity, note=on_note, deadline=deadline, canceled=canceled
        )
        return
    if plan.reporting is None:
        return
    from tonnage.loading.reservation_request import request_room

    request_room(
        plan,
        plan.reporting,
        entry_name=entry.name,
        required_bytes=required_bytes,
        on_progress=on_progress,
        on_note=on_note,
        deadline=deadline,
        canceled=canceled,
    )


def make_files(partial: PartialDirectory, blueprint: Blueprint) -> dict[str, FileIdentity]:
    """Creates the blueprint's files in the partial directory, with their size. Returns what each is, by path.

    Existing files of the right size keep their contents.

    Raises:
        CacheNotWritable: A file can't be created.
        InsufficientSpace: The medium is full.
    """
    made = {}
    for file in blueprint.files:
        path = partial.model_dir / file.path
        for folder in reversed(path.relative_to(partial.model_dir).parents):
            make_directory(partial.model_dir / folder)
        with translate_os_errors(f"{path} can't be created"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                found = os.fstat(descriptor)
                if found.st_size != file.size:
                    os.ftruncate(descriptor, 0)
                    os.ftruncate(descriptor, file.size)
            finally:
                os.close(descriptor)
        made[file.path] = FileIdentity(found.st_dev, found.st_ino)
    return made


def write_prefixes(partial: PartialDirectory, blueprint: Blueprint) -> None:
    """Writes what is known of the files before the transfer.

    Raises:
        CacheNotWritable: A file can't be written.
        InsufficientSpace: The medium is full.
    """
    for file in blueprint.files:
        path = partial.model_dir / file.path
        with translate_os_errors(f"{path} can't be written"):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                at = 0
                while at < len(file.prefix):
                    at += os.pwrite(descriptor, file.prefix[at:], at)
            finally:
                os.close(descriptor)
