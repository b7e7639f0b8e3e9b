"""Determines which data of an earlier, unfinished load is valid."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING

import msgspec

from tonnage.cache.filesystem import read_range
from tonnage.cache.journal import Journal, JournalHeader
from tonnage.cache.procfs import boot_id
from tonnage.errors import CacheDamaged
from tonnage.planning.segments import NOT_WRITTEN, SpanRole
from tonnage.transfer.transfer_spec import DiscardedTensor, FetchedRange

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tonnage.planning.blueprint import Blueprint
    from tonnage.planning.segments import Segment
    from tonnage.source.resolve import ResolvedObject

READ_BYTES = 4 << 20


def journal_identity(items: Sequence[ResolvedObject]) -> str:
    """Returns a digest of the objects to load, which a journal must match in addition to the revision."""
    rows = [[item.place, item.pin.key, item.pin.etag, item.pin.version_id, item.pin.size] for item in items]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def build_journal_header(blueprint: Blueprint, *, revision: str, segment_size: int, identity: str) -> JournalHeader:
    """Returns the journal header of this blueprint."""
    return JournalHeader(
        revision=revision,
        layout=blueprint.layout,
        segment_size=segment_size,
        part_size=0,  # required by the format of the journal; not used
        files=tuple((file.path, file.size) for file in blueprint.files),
        boot_id=boot_id(),
        identity=identity,
    )


def read_records(journal: Journal) -> list[FetchedRange | DiscardedTensor]:
    """Returns the journal's records before the first one that can't be decoded."""
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
    """Returns the records that are still valid.

    Args:
        records: All records, in the order in which they were written.
        blueprint: The blueprint of the same plan.
        folder: The directory of the files.
        after_reboot: The machine has rebooted, so the disk may lack data that the journal lists. Records are verified
            by CRC-32; records without one are dropped.
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
        if not inside or not present.issuperset(_written_files(segment, record)):
            continue
        if not after_reboot or _checksums_match(record, blueprint, folder):
            kept.append(record)
    return kept


def _written_files(segment: Segment, record: FetchedRange) -> set[int]:
    """Returns the indexes of the files that the range was written to; the segment's own, if to none."""
    pieces = segment.pieces(record.start, record.end)
    return {piece.file_index for piece in pieces if piece.target_offset != NOT_WRITTEN} or {segment.file_index}


def _checksums_match(record: FetchedRange, blueprint: Blueprint, folder: Path) -> bool:
    from isal import isal_zlib  # only needed after a reboot

    segment = blueprint.segments[record.segment]
    pieces = segment.pieces(record.start, record.end)
    buffer = memoryview(bytearray(READ_BYTES))
    with contextlib.ExitStack() as opened:
        files = {
            number: opened.enter_context((folder / blueprint.files[number].path).open("rb", buffering=0))
            for number in _written_files(segment, record)
        }
        for piece, checksum in zip(pieces, record.checksums, strict=False):
            if piece.role is SpanRole.OPAQUE:
                return False
            if piece.role is not SpanRole.DATA:
                continue
            path = folder / blueprint.files[piece.file_index].path
            start, end = piece.target_offset, piece.target_offset + piece.end - piece.start
            value = 0
            try:
                for data in read_range(files[piece.file_index].fileno(), start, end, buffer, path=path):
                    value = isal_zlib.crc32(data, value)
            except CacheDamaged:
                return False
            if value != checksum:
                return False
    return True
