"""What an earlier load left on disk: which of it counts, and the files to go on with."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import msgspec

from tonnage.cache.filesystem import read_range
from tonnage.cache.journal import Journal, JournalHeader
from tonnage.cache.procfs import boot_id
from tonnage.errors import CacheDamaged
from tonnage.planning.segments import SpanRole
from tonnage.transfer.transfer_spec import DiscardedTensor, FetchedRange

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

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
        part_size=0,  # required by the format of the journal; not used
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
    buffer = memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        for piece, checksum in zip(pieces, record.checksums, strict=False):
            if piece.role is SpanRole.OPAQUE:
                return False
            if piece.role is not SpanRole.DATA:
                continue
            start, end = piece.target_offset, piece.target_offset + piece.end - piece.start
            value = 0
            try:
                for data in read_range(file.fileno(), start, end, buffer, path=path):
                    value = isal_zlib.crc32(data, value)
            except CacheDamaged:
                return False
            if value != checksum:
                return False
    return True
