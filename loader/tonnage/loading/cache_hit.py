"""Compares an entry with a resolved revision and the plan to decide whether a load is a hit. Pure."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from tonnage.contract import ComputedBuffers, Layout, ObjectPin, Verify, parse_checksum, revision_digest
from tonnage.errors import CacheDamaged
from tonnage.format.checksums import can_compute

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tonnage.cache.manifest import FileRecord, Manifest, SourceRecord, TensorTable
    from tonnage.contract import ObjectChecksum
    from tonnage.source.resolve import ResolvedObject, ResolvedRevision


class Shortfall(enum.Enum):
    """What an entry lacks for a load."""

    NOTHING = "nothing"
    VERIFICATION = "verification"
    """All objects are present, but verified at a lower level than requested and possible."""
    CHECKSUMS = "checksums"
    """All objects are present, but their source has checksums by which some were not verified."""
    OBJECTS = "objects"
    """Objects are missing, for example because other ranks were loaded before."""


def find_shortfall(manifest: Manifest, resolved: ResolvedRevision, requested_level: Verify) -> Shortfall:
    """Returns what the entry lacks for the objects of ``resolved``, verified at ``requested_level``."""
    records = [find_source_record(manifest, item) for item in resolved.objects]
    if any(record is None for record in records):
        return Shortfall.OBJECTS
    if any(_needs_verification(record, requested_level) for record in records if record is not None):
        return Shortfall.VERIFICATION
    if any(
        lacks_checksum(manifest, record, item.pin, requested_level)
        for record, item in zip(records, resolved.objects, strict=True)
        if record is not None
    ):
        return Shortfall.CHECKSUMS
    return Shortfall.NOTHING


def recorded_pins(manifest: Manifest, digest: str) -> tuple[ObjectPin, ...] | None:
    """Returns the pins of all objects of the revision with this digest, or None if the entry doesn't have them all.

    The digest proves them, independent of who wrote the manifest.
    """
    pins = [
        (
            record.place,
            ObjectPin(
                key=record.key,
                size=record.size,
                etag=record.etag,
                version_id=record.version_id,
                checksum=record.checksum if parse_checksum(record.checksum) is not None else "",
            ),
        )
        for record in manifest.sources
    ]
    return tuple(pin for _, pin in pins) if revision_digest(pins) == digest else None


def has_computed_buffers_elsewhere(
    manifest: Manifest, computed_buffers: ComputedBuffers, read_table: Callable[[], TensorTable | None]
) -> bool:
    """Returns whether an entry has computed buffers, and not where the plan wants them.

    Args:
        manifest: The entry's manifest.
        computed_buffers: Where the plan wants them.
        read_table: Returns the entry's table of tensors. Called only if the manifest is not enough, because the table
            of a large model takes milliseconds to read.
    """
    if manifest.layout is not Layout.SAFETENSORS:
        return False
    if (manifest.computed_buffers or ComputedBuffers.IN_SHARDS) is computed_buffers:
        return False
    if any(file.computed_buffers for file in manifest.files):
        return True
    from tonnage.format.known_tensors import is_computed_buffer

    table = read_table()
    return table is not None and any(
        tensor.file >= 0 and is_computed_buffer(tensor.name, tensor.kind) for tensor in table.tensors
    )


def check_sources(manifest: Manifest, resolved: ResolvedRevision, *, where: Path) -> None:
    """Checks that an entry of the revision shows only objects of the revision, about which the store was asked.

    Raises:
        CacheDamaged: It doesn't.
    """
    foreign = foreign_sources(manifest, resolved) if manifest.digest == resolved.digest else []
    if foreign:
        raise CacheDamaged(f"{where} lists {foreign[0].key!r}, which is not in revision {resolved.revision}.")


def foreign_sources(manifest: Manifest, resolved: ResolvedRevision) -> list[SourceRecord]:
    """Returns the objects of an entry that are not in the revision, so that the store was not asked about them."""
    known = {
        (source.place, pin.key, pin.size, pin.etag, pin.version_id)
        for source in resolved.sources
        for pin in source.objects
    }
    return [
        record
        for record in manifest.sources
        if (record.place, record.key, record.size, record.etag, record.version_id) not in known
    ]


def missing_objects(manifest: Manifest | None, resolved: ResolvedRevision) -> Sequence[ResolvedObject]:
    """Returns the objects that are not in the entry."""
    return [item for item in resolved.objects if manifest is None or find_source_record(manifest, item) is None]


def find_source_record(manifest: Manifest, item: ResolvedObject) -> SourceRecord | None:
    """Returns the record of exactly this version of the object, or None."""
    pin = item.pin
    wanted = (item.place, pin.key, pin.size, pin.etag, pin.version_id)
    for record in manifest.sources:
        if (record.place, record.key, record.size, record.etag, record.version_id) == wanted:
            return record
    return None


def _needs_verification(record: SourceRecord, requested_level: Verify) -> bool:
    reachable = min(requested_level, record.strongest, key=lambda level: level.strength)
    return record.kind == "tensors" and record.verified.strength < reachable.strength


def checksum_level(checksum: ObjectChecksum) -> Verify:
    """Returns the level at which an object is verified that matches its checksum."""
    return Verify.SHA256 if checksum.algorithm.reaches_sha256 else Verify.CRC32


def lacks_checksum(manifest: Manifest, record: SourceRecord, pin: ObjectPin, requested_level: Verify) -> bool:
    """Returns whether an object is to be compared with the checksum that its source states now.

    It was verified at a lower level than requested, and holds no hashes of its own. At level ``BEST`` only what can be
    compared without a new load counts: the entry has all of its bytes in one file.
    """
    wanted = requested_level.reachable
    if requested_level.strength < Verify.BEST.strength or record.verified.strength >= wanted.strength:
        return False
    if _holds_hashes(record):
        return False
    checksum = parse_checksum(pin.checksum)
    reached = Verify.SIZE if checksum is None else checksum_level(checksum)
    if requested_level is not Verify.BEST:
        return record.kind == "tensors" and (not record.encrypted or reached.strength >= wanted.strength)
    if checksum is None or reached.strength <= record.verified.strength or not can_compute(checksum.algorithm):
        return False
    return not checksum.parts and whole_file(manifest, record) is not None


def _holds_hashes(record: SourceRecord) -> bool:
    """Returns whether an object's own hashes are those by which it is verified."""
    is_hashed = record.strongest.strength >= Verify.CRC32.strength and not record.checksum
    return record.kind == "tensors" and is_hashed and not record.encrypted


def whole_file(manifest: Manifest, record: SourceRecord) -> FileRecord | None:
    """Returns the file that has an object's bytes unchanged; None if there is none."""
    number = manifest.sources.index(record)
    files = [file for file in manifest.files if file.source == number]
    return files[0] if len(files) == 1 and files[0].size == record.size else None
