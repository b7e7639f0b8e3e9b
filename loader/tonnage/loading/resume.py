"""What an earlier load left on disk: which of it counts, and the files to go on with."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

import msgspec

from tonnage.cache.boot import boot_id
from tonnage.cache.filesystem import make_directory, translate_os_errors
from tonnage.cache.journal import Journal, JournalHeader
from tonnage.planning.segments import SpanRole
from tonnage.transfer.transfer_spec import DiscardedTensor, FetchedRange

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tonnage.cache.entry import Entry
    from tonnage.planning.blueprint import Blueprint
    from tonnage.source.resolve import ResolvedObject

READ_BYTES = 4 << 20


def journal_identity(items: Sequence[ResolvedObject]) -> str:
    """Returns what a journal must agree on besides the revision: which of its objects are being loaded."""
    rows = [[item.place, item.pin.key, item.pin.etag, item.pin.version_id, item.pin.size] for item in items]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def build_journal_header(blueprint: Blueprint, *, revision: str, segment_size: int, identity: str) -> JournalHeader:
    """Returns the header under which records of this blueprint are written."""
    return JournalHeader(
        revision=revision,
        layout=blueprint.layout,
        segment_size=segment_size,
        part_size=0,
        files=tuple((file.path, file.size) for file in blueprint.files),
        boot_id=boot_id(),
        identity=identity,
    )


def read_records(journal: Journal) -> list[FetchedRange | DiscardedTensor]:
    """Returns what the journal says, up to the first record that can't be understood."""
    records: list[FetchedRange | DiscardedTensor] = []
    for payload in journal.read_payloads():
        try:
            records.append(msgspec.msgpack.decode(payload, type=FetchedRange | DiscardedTensor))
        except msgspec.MsgspecError:
            break
    return records


def valid_records(
    records: Sequence[FetchedRange | DiscardedTensor], blueprint: Blueprint, folder: Path, *, after_reboot: bool
) -> list[FetchedRange | DiscardedTensor]:
    """Returns the records that still hold.

    Args:
        records: As they were written.
        blueprint: Of the same plan.
        folder: Where the files are.
        after_reboot: The machine was started anew since, so the disk may have lost what the journal claims: what can be
            checked against its CRC-32 is, and the rest does not count.
    """
    present = {
        number
        for number, file in enumerate(blueprint.files)
        if (path := folder / file.path).is_file() and path.stat().st_size == file.size
    }
    kept: list[FetchedRange | DiscardedTensor] = []
    for record in records:
        if isinstance(record, DiscardedTensor):
            kept.append(record)
            continue
        if not 0 <= record.segment < len(blueprint.segments):
            continue
        segment = blueprint.segments[record.segment]
        inside = segment.start <= record.start < record.end <= segment.end
        if not inside or segment.file_index not in present:
            continue
        if not after_reboot or _checksums_match(record, blueprint, folder):
            kept.append(record)
    return kept


def _checksums_match(record: FetchedRange, blueprint: Blueprint, folder: Path) -> bool:
    from isal import isal_zlib  # only after a restart of the machine

    segment = blueprint.segments[record.segment]
    path = folder / blueprint.files[segment.file_index].path
    pieces = segment.pieces(record.start, record.end)
    with path.open("rb", buffering=0) as file:
        for piece, checksum in zip(pieces, record.checksums, strict=False):
            if piece.role is SpanRole.OPAQUE:
                return False
            if piece.role is not SpanRole.DATA:
                continue
            value, at, end = 0, piece.target_offset, piece.target_offset + piece.end - piece.start
            while at < end:
                data = os.pread(file.fileno(), min(READ_BYTES, end - at), at)
                if not data:
                    return False
                value = isal_zlib.crc32(data, value)
                at += len(data)
            if value != checksum:
                return False
    return True


def make_files(entry: Entry, blueprint: Blueprint) -> list[str]:
    """Creates the blueprint's files in the partial folder, with size and prefix; returns their paths.

    Files that are there with the right size keep what they have.

    Raises:
        CacheNotWritable: A file can't be made.
        InsufficientSpace: There is no room for it.
    """
    paths = []
    for file in blueprint.files:
        path = entry.partial_model_dir / file.path
        for folder in reversed(path.relative_to(entry.partial_model_dir).parents):
            make_directory(entry.partial_model_dir / folder)
        with translate_os_errors(f"{path} can't be made"):
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
    """Returns the bytes of the medium that the files below ``folder`` already occupy."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
