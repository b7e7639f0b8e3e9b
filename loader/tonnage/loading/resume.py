"""Determines which data of an earlier, unfinished load is valid, by reading it again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from typing import TYPE_CHECKING

import msgspec

from tonnage.cache.cgroups import usable_cores
from tonnage.cache.filesystem import read_range
from tonnage.cache.journal import JournalHeader
from tonnage.contract import Progress
from tonnage.errors import CacheDamaged, Interrupted, Timeout
from tonnage.planning.segments import NOT_WRITTEN, SpanRole
from tonnage.transfer.transfer_spec import FetchedRange, JournalRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tonnage.planning.blueprint import Blueprint
    from tonnage.planning.object_checks import ObjectCheck
    from tonnage.planning.segments import Piece, Segment
    from tonnage.source.resolve import ResolvedObject

READ_BYTES = 1 << 20
"""Bytes of one read: small enough to stay in the CPU cache until the checksum is computed."""

MAX_THREADS = 16


def journal_identity(items: Sequence[ResolvedObject], checks: Mapping[int, ObjectCheck]) -> str:
    """Returns a digest of the objects to load and of their checks, which a journal must match beside the revision."""
    rows: list[list[str | int]] = [
        [item.place, item.pin.key, item.pin.etag, item.pin.version_id, item.pin.size] for item in items
    ]
    rows += [
        [index, str(check.checksum), repr(check.ranges)] for index, check in sorted(checks.items()) if check.is_stated
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def build_journal_header(blueprint: Blueprint, *, revision: str, segment_size: int, identity: str) -> JournalHeader:
    """Returns the journal header of this blueprint."""
    return JournalHeader(
        revision=revision,
        layout=blueprint.layout,
        segment_size=segment_size,
        files=tuple((file.path, file.size) for file in blueprint.files),
        identity=identity,
    )


def decode_records(payloads: Sequence[bytes]) -> list[JournalRecord]:
    """Returns the records of a journal before the first one that can't be decoded."""
    records: list[JournalRecord] = []
    for payload in payloads:
        try:
            records.append(msgspec.msgpack.decode(payload, type=JournalRecord))
        except msgspec.MsgspecError:
            break
    return records


def valid_records(
    records: Sequence[JournalRecord],
    blueprint: Blueprint,
    folder: Path,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    deadline: float | None = None,
    canceled: Callable[[], bool] = lambda: False,
) -> list[JournalRecord]:
    """Returns the records whose bytes are on the disk. All of them are read again and compared with what was received.

    Args:
        records: All records, in the order in which they were written.
        blueprint: The blueprint of the same plan.
        folder: The directory of the files.
        on_progress: Called with the bytes read and their total.
        deadline: ``time.monotonic()`` at which to fail; None for no limit.
        canceled: Polled after each range; return True to cancel.

    Raises:
        Timeout: The deadline passed.
        Interrupted: ``canceled`` returned True.
    """
    present = {
        number
        for number, file in enumerate(blueprint.files)
        if (path := folder / file.path).is_file() and path.stat().st_size == file.size
    }

    def is_valid(record: JournalRecord) -> bool:
        return not isinstance(record, FetchedRange) or (
            _is_inside(record, blueprint)
            and present.issuperset(_written_files(blueprint.segments[record.segment], record))
            and _is_on_disk(record, blueprint, folder)
        )

    kept: list[JournalRecord] = []
    done, total = 0, sum(_length(record) for record in records)
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and most loads resume nothing

    with ThreadPoolExecutor(max(1, min(int(usable_cores()), MAX_THREADS))) as pool:
        for record, valid in zip(records, pool.map(is_valid, records), strict=True):
            if valid:
                kept.append(record)
            done += _length(record)
            on_progress(Progress(phase="verifying", loaded_bytes=done, total_bytes=total))
            interruption = _interruption(deadline, canceled)
            if interruption is not None:
                pool.shutdown(wait=False, cancel_futures=True)
                raise interruption
    return kept


def _interruption(deadline: float | None, canceled: Callable[[], bool]) -> Interrupted | Timeout | None:
    if canceled():
        return Interrupted("The load was interrupted while it verified what an earlier one has left, which is kept.")
    if deadline is not None and time.monotonic() > deadline:
        return Timeout("The deadline passed while the load verified what an earlier one has left.")
    return None


def _length(record: JournalRecord) -> int:
    return 0 if not isinstance(record, FetchedRange) else max(0, record.end - record.start)


def _is_inside(record: FetchedRange, blueprint: Blueprint) -> bool:
    if not 0 <= record.segment < len(blueprint.segments):
        return False
    segment = blueprint.segments[record.segment]
    return segment.start <= record.start < record.end <= segment.end


def _written_files(segment: Segment, record: FetchedRange) -> set[int]:
    """Returns the indexes of the files that the range was written to; the segment's own, if to none."""
    pieces = segment.pieces(record.start, record.end)
    return {piece.file_index for piece in pieces if piece.target_offset != NOT_WRITTEN} or {segment.file_index}


def _is_on_disk(record: FetchedRange, blueprint: Blueprint, folder: Path) -> bool:
    segment = blueprint.segments[record.segment]
    pieces = segment.pieces(record.start, record.end)
    if min(len(record.checksums), len(record.captured)) < len(pieces):
        return False
    buffer = memoryview(bytearray(READ_BYTES))
    with contextlib.ExitStack() as opened:
        files = {
            number: opened.enter_context((folder / blueprint.files[number].path).open("rb", buffering=0)).fileno()
            for number in _written_files(segment, record)
        }
        try:
            return all(
                _is_equal(piece, checksum, content, files, buffer, folder / blueprint.files[piece.file_index].path)
                for piece, checksum, content in zip(pieces, record.checksums, record.captured, strict=False)
                if piece.target_offset != NOT_WRITTEN
            )
        except (CacheDamaged, OSError):  # shorter than it was, or unreadable: load it again
            return False


def _is_equal(
    piece: Piece, checksum: int, content: bytes, files: dict[int, int], buffer: memoryview, path: Path
) -> bool:
    from isal import isal_zlib

    start, end = piece.target_offset, piece.target_offset + piece.end - piece.start
    value = 0
    for data in read_range(files[piece.file_index], start, end, buffer, path=path):
        value = isal_zlib.crc32(data, value)
    return value == (isal_zlib.crc32(content) if piece.role in {SpanRole.HEADER, SpanRole.TAIL} else checksum)
