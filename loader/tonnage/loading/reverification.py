"""Verifies a published entry at a higher level than when it was loaded, without loading it again.

By hashes that it holds, or by checksums that its source states now: it had none before, or the load didn't ask.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from tonnage.cache import commit
from tonnage.cache.cgroups import usable_cores
from tonnage.cache.filesystem import open_for_reading, read_range
from tonnage.cache.verified_by import NO_CHECKSUM, no_checksum_note
from tonnage.cache.verify import verify_entry
from tonnage.contract import Progress, parse_checksum
from tonnage.errors import CacheDamaged, Interrupted
from tonnage.loading.cache_hit import checksum_level, find_source_record, lacks_checksum, whole_file
from tonnage.loading.manifest_builder import upgrade_manifest, weakest
from tonnage.source.resolve import no_checksum
from tonnage.transfer.hash_pool import RunningChecksum

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage.cache.entry import Entry
    from tonnage.cache.manifest import FileRecord, Manifest, SourceRecord
    from tonnage.contract import ObjectChecksum, Verify
    from tonnage.source.resolve import ResolvedRevision

READ_BYTES = 1 << 20
MAX_THREADS = 16


def verify_by_own_hashes(
    entry: Entry,
    manifest: Manifest,
    level: Verify,
    on_progress: Callable[[Progress], None],
    canceled: Callable[[], bool],
) -> Manifest:
    """Verifies an entry by the hashes that it holds; returns the new manifest. Raises as ``verify_entry`` does."""
    verify_entry(
        entry,
        level=level,
        progress=lambda done, total: on_progress(Progress(phase="verifying", loaded_bytes=done, total_bytes=total)),
        canceled=canceled,
    )
    upgraded = upgrade_manifest(manifest, level.reachable)
    commit.rewrite_manifest(entry, upgraded)
    return upgraded


def compare_with_checksums(
    entry: Entry,
    manifest: Manifest,
    resolved: ResolvedRevision,
    level: Verify,
    on_progress: Callable[[Progress], None],
    canceled: Callable[[], bool],
) -> Manifest:
    """Compares the files whose source has a checksum by which they were not verified; returns the new manifest.

    Args:
        entry: The entry, whose load lock the caller holds.
        manifest: Its manifest.
        resolved: The revision, with the checksums that its source states now.
        level: The requested level.
        on_progress: Called with the bytes read and their total.
        canceled: Polled; return True to cancel.

    Raises:
        CacheDamaged: A file differs, or is not the object byte for byte, so that only a load can compare it.
        NoChecksum: The source states no checksum that reaches the level.
        Interrupted: ``canceled`` returned True.
    """
    wanted: dict[SourceRecord, tuple[ObjectChecksum, FileRecord]] = {}
    for item in resolved.objects:
        record = find_source_record(manifest, item)
        checksum = parse_checksum(item.pin.checksum)
        if record is None or not lacks_checksum(manifest, record, item.pin, level):
            continue
        if checksum is None or checksum_level(checksum).strength < level.strength:
            raise no_checksum(item.target.label, checksum, level)
        file = whole_file(manifest, record)
        if file is None or checksum.parts:
            raise CacheDamaged(f"{item.target.label} was not verified by {checksum.words} when it was loaded.")
        wanted[record] = checksum, file
    total, done = sum(file.size for _, file in wanted.values()), 0

    def compare(checksum: ObjectChecksum, file: FileRecord) -> int:
        path = entry.model_dir / file.path
        running = RunningChecksum(checksum.algorithm, file.size)
        buffer = memoryview(bytearray(READ_BYTES))
        descriptor = open_for_reading(path)
        try:
            for data in read_range(descriptor, 0, file.size, buffer, path=path):
                if canceled():
                    raise Interrupted("Interrupted while comparing with checksums; the entry is unchanged.")
                running.update(data)
        finally:
            os.close(descriptor)
        if running.digest() != checksum.value:
            raise CacheDamaged(f"{path} does not match the {checksum.words} that its source states, {checksum}.")
        return file.size

    with ThreadPoolExecutor(max(1, min(int(usable_cores()), MAX_THREADS))) as pool:
        for size in pool.map(compare, *zip(*wanted.values(), strict=True)):
            done += size
            on_progress(Progress(phase="verifying", loaded_bytes=done, total_bytes=total))
    compared = _with_checksums(manifest, {record: checksum for record, (checksum, _) in wanted.items()})
    commit.rewrite_manifest(entry, compared)
    return compared


def _with_checksums(manifest: Manifest, checksums: dict[SourceRecord, ObjectChecksum]) -> Manifest:
    sources = tuple(
        record
        if (checksum := checksums.get(record)) is None
        else msgspec.structs.replace(
            record,
            verified=checksum_level(checksum),
            strongest=max(record.strongest, checksum_level(checksum), key=lambda level: level.strength),
            checksum=str(checksum),
        )
        for record in manifest.sources
    )
    lacking = no_checksum_note(sources)
    notes = (*(note for note in manifest.notes if not note.startswith(NO_CHECKSUM)), *([lacking] if lacking else []))
    return msgspec.structs.replace(manifest, sources=sources, verified=weakest(sources), notes=notes)
