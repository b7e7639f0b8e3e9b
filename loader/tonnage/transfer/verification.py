"""Tracks which tensors are verified, to which level, and which must be hashed or refetched.

``ChecksumTracker`` checks headers and CRC-32. This module adds SHA-256 over the bytes on disk, one refetch of a corrupt
tensor, and the journal of an earlier load.
"""

from __future__ import annotations

import bisect
import zlib
from typing import TYPE_CHECKING, NamedTuple, assert_never

from tonnage.contract import Verify
from tonnage.errors import CacheDamaged, InternalError
from tonnage.format.tensors_index import TensorsIndex
from tonnage.planning.segments import NO_TENSOR, NOT_WRITTEN, SpanRole, grow_ranges, subtract_ranges
from tonnage.transfer.checksum_tracker import ChecksumTracker, CorruptTensor, VerifiedTensor, mismatch_error
from tonnage.transfer.complete_files import CompleteFiles
from tonnage.transfer.object_verification import CorruptObject, ObjectVerification
from tonnage.transfer.protocol import Hash
from tonnage.transfer.transfer_spec import DiscardedRange, DiscardedTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tonnage.format.tensors_index import TensorEntry
    from tonnage.planning.segments import ByteRange, Piece
    from tonnage.transfer.finished_ranges import FinishedRanges
    from tonnage.transfer.transfer_spec import FetchedRange, TransferResult, TransferSpec


class HashTask(NamedTuple):
    """A tensor to be hashed by a worker."""

    request: Hash
    object: int
    tensor: int


class Verification:
    """Handles fetched ranges and hashes, and writes the level to which each object is verified to the result.

    Attributes:
        tensors: Number of tensors.
        verified: Number of tensors verified so far.
        objects: The objects that are verified by a checksum of their source.
        pending_hashes: Tensors waiting to be hashed by a worker; the coordinator removes those that it assigns.
        complete_files: The output files that are complete.
        is_from_peer: Returns whether a peer sent bytes of an object's range, which must not count without a hash.
        finished: What is shown to peers; None: nothing is.
    """

    def __init__(self, spec: TransferSpec, result: TransferResult) -> None:
        self.is_from_peer: Callable[[int, int, int], bool] = lambda _index, _start, _end: False
        self.finished: FinishedRanges | None = None
        self._spec = spec
        self._result = result
        self._segments = spec.blueprint.segments
        self._by_start = sorted(self._segments, key=lambda segment: (segment.object_index, segment.start))
        self._tracker = ChecksumTracker(
            spec.blueprint.objects, check_crc32=spec.verify.strength >= Verify.CRC32.strength
        )
        self._placement = {(place.object_index, place.tensor_index): place for place in spec.blueprint.placements}
        self.objects = ObjectVerification(spec.blueprint, spec.checks)
        if spec.peers is not None:
            from tonnage.transfer.finished_ranges import FinishedRanges

            self.finished = FinishedRanges(spec.blueprint, self.objects.checked)
        self._refetched: set[tuple[int, int]] = set()
        self._hashes = 0
        self.tensors = len(self._placement)
        self.verified = 0
        self.pending_hashes: list[HashTask] = []
        self.complete_files = CompleteFiles(spec.blueprint, self.objects.checked)
        for outcome in self._tracker.add_empty():
            self._record_verified(outcome)

    def replay(self) -> dict[int, list[ByteRange]]:
        """Replays the journal of an earlier load; returns the ranges that need not be fetched, by segment."""
        done: dict[int, list[ByteRange]] = {}
        for record in self._spec.journal_records:
            if isinstance(record, DiscardedTensor):
                self._discard(done, record.object, record.tensor)
                continue
            if isinstance(record, DiscardedRange):
                self.discard(record.object, record.start, record.end)
                self._punch(done, record.object, record.start, record.end)
                continue
            done.setdefault(record.segment, []).append((record.start, record.end))
            for corrupt in self._add(record):
                self._discard(done, corrupt.object, corrupt.tensor)
        for number, ranges in done.items():
            whole = (self._segments[number].start, self._segments[number].end)
            missing = sum(end - start for start, end in subtract_ranges(whole, ranges))
            self.complete_files.add_bytes(number, self._segments[number].size - missing)
        self._result.resumed = sum(end - start for ranges in done.values() for start, end in ranges)
        return done

    def believable(self) -> set[int]:
        """Returns the objects whose bytes a peer may send: they are verified by hashes that no peer has sent."""
        checks_tensors = self._spec.verify.strength >= Verify.CRC32.strength
        return {
            index
            for index, source in enumerate(self._spec.blueprint.objects)
            if (source.has_hashes and checks_tensors)
            or (index in self.objects.checked and self._spec.checks[index].certain)
        }

    def add(self, done: FetchedRange) -> list[CorruptTensor]:
        """Adds a fetched range; returns the corrupt tensors that it completed."""
        self.complete_files.add_bytes(done.segment, done.end - done.start)
        return self._add(done)

    def _add(self, done: FetchedRange) -> list[CorruptTensor]:
        segment = self._segments[done.segment]
        pieces = segment.pieces(done.start, done.end)
        self._add_non_tensor_bytes(segment.object_index, pieces, done)
        crc32s = [
            zlib.crc32(content) if piece.role in {SpanRole.HEADER, SpanRole.TAIL} else checksum
            for piece, checksum, content in zip(pieces, done.checksums, done.captured, strict=False)
        ]
        self.objects.add(
            segment.object_index,
            done.start,
            done.end,
            crc=done.crc,
            pieces=pieces,
            crc32s=crc32s,
            captured=done.captured,
        )
        corrupt: list[CorruptTensor] = []
        if self._spec.collects_headers:
            self._result.collected.add(segment.object_index, pieces, crc32s, done.captured)
        for outcome in self._tracker.add(segment.object_index, pieces, done.checksums, done.captured):
            if isinstance(outcome, VerifiedTensor) and self._is_unproven(outcome):
                corrupt.append(self._unproven(outcome.object, outcome.tensor))
            elif isinstance(outcome, CorruptTensor):
                corrupt.append(outcome)
            elif isinstance(outcome, VerifiedTensor):
                self._record_verified(outcome)
            else:
                assert_never(outcome)
        return corrupt

    def check_sha256(self, task: HashTask, digest: bytes) -> CorruptTensor | None:
        """Compares a tensor's SHA-256 with its header; returns the tensor if it is corrupt.

        Raises:
            CacheDamaged: The file was truncated during the load.
        """
        _, index, tensor = task
        if not digest:
            raise CacheDamaged(f"{self._spec.paths[task.request.file]} was truncated during the load.")
        if digest == self._tracker.headers[index, tensor].expected_sha256:
            self._count(index, tensor, Verify.SHA256)
            return None
        label, name = self._spec.blueprint.objects[index].label, self._entry(index, tensor).name
        place = self._range(index, tensor)
        return CorruptTensor(index, tensor, place, mismatch_error(label, name, place, "SHA-256"))

    def _is_unproven(self, outcome: VerifiedTensor) -> bool:
        """Returns whether a tensor of a file with hashes has none, and a peer sent bytes of it."""
        source = self._spec.blueprint.objects[outcome.object]
        return (
            source.has_hashes
            and outcome.header.expected_crc32 is None
            and outcome.header.expected_sha256 is None
            and self.is_from_peer(outcome.object, *self._range(outcome.object, outcome.tensor))
        )

    def _unproven(self, index: int, tensor: int) -> CorruptTensor:
        place = self._range(index, tensor)
        label, name = self._spec.blueprint.objects[index].label, self._entry(index, tensor).name
        return CorruptTensor(index, tensor, place, mismatch_error(label, name, place, "hash"))

    def prepare_refetch(self, corrupt: CorruptTensor) -> int:
        """Forgets a corrupt tensor, so that it can be refetched; returns the segment that contains it.

        Raises:
            ChecksumMismatch: The tensor has already been refetched.
        """
        key = (corrupt.object, corrupt.tensor)
        if key in self._refetched:
            raise corrupt.error
        self._refetched.add(key)
        return self.forget(corrupt)

    def forget(self, corrupt: CorruptTensor) -> int:
        """Forgets a tensor whose bytes may be wrong because of a peer; returns the segment that contains it."""
        key = (corrupt.object, corrupt.tensor)
        self._tracker.discard(*key)
        self._discard_bytes(corrupt.object, *corrupt.range)
        segment = self._segment_at(corrupt.object, corrupt.range[0])
        self.complete_files.remove_bytes(segment, corrupt.range[1] - corrupt.range[0])
        return segment

    def grow(self, corrupt: CorruptObject) -> list[ByteRange]:
        """Returns what to fetch again of a corrupt object: its ranges, and the whole of tensors and parts in them."""
        units = self.objects.received_ranges(corrupt.object)
        source = self._spec.blueprint.objects[corrupt.object]
        if source.tensors_index is not None:
            units = [(entry.header_offset, entry.data_end) for entry in source.tensors_index.tensors]
        return grow_ranges(corrupt.ranges, units)

    def discard(self, index: int, start: int, end: int) -> None:
        """Forgets a range of an object and its tensors, so that it can be refetched."""
        self.objects.discard(index, start, end)
        self._discard_bytes(index, start, end)
        source = self._spec.blueprint.objects[index]
        for number, entry in enumerate(source.tensors_index.tensors if source.tensors_index is not None else ()):
            if max(start, entry.header_offset) < min(end, entry.data_end):
                self.verified -= (index, number) in self._tracker.headers
                self._tracker.discard(index, number)
                self.complete_files.remove_tensor((index, number))

    def within_segments(self, index: int, start: int, end: int) -> list[tuple[int, ByteRange]]:
        """Returns the parts of an object's range by segment."""
        return [
            (segment.index, (max(segment.start, start), min(segment.end, end)))
            for segment in self._segments
            if segment.object_index == index and segment.start < end and start < segment.end
        ]

    def finish(self) -> None:
        """Writes headers, and what was verified by checksums of objects, to the result.

        Raises:
            InternalError: A tensor or an object has not been verified.
        """
        missing = self.tensors - len(self._tracker.headers)
        if missing:
            raise InternalError(f"{missing} tensors were never verified.")
        if self.objects.unsettled:
            raise InternalError(f"{self.objects.unsettled[0]} was never compared with its checksum.")
        self._result.headers = self._tracker.headers
        stated = {index: check for index, check in self.objects.verified.items() if check.is_stated}
        self._result.object_checks = stated
        self._result.unverified = self.objects.unverified
        for index, check in stated.items():
            self._result.verify_levels[index] = check.level

    def _discard_bytes(self, index: int, start: int, end: int) -> None:
        self._result.non_tensor_bytes.discard(index, start, end)
        self._result.collected.discard(index, start, end)
        if self.finished is not None:
            self.finished.discard(index, start, end)

    def _punch(self, done: dict[int, list[ByteRange]], index: int, start: int, end: int) -> None:
        """Removes a range of an object from those that need not be fetched."""
        for segment, hole in self.within_segments(index, start, end):
            done[segment] = [left for kept in done.get(segment, []) for left in subtract_ranges(kept, [hole])]

    def _add_non_tensor_bytes(self, index: int, pieces: Sequence[Piece], done: FetchedRange) -> None:
        for piece, checksum, content in zip(pieces, done.checksums, done.captured, strict=False):
            if piece.target_offset == NOT_WRITTEN or piece.role is SpanRole.DATA:
                continue
            if piece.role is SpanRole.OPAQUE and piece.tensor_index != NO_TENSOR:  # an encrypted tensor's data
                continue
            self._result.non_tensor_bytes.add(
                index,
                piece.start,
                file=piece.file_index,
                offset=piece.target_offset,
                length=piece.end - piece.start,
                crc32=checksum if piece.role is SpanRole.OPAQUE else zlib.crc32(content),
            )

    def _record_verified(self, outcome: VerifiedTensor) -> None:
        level = Verify.SIZE
        header = outcome.header
        source = self._spec.blueprint.objects[outcome.object]
        has_hashes = isinstance(source.tensors_index, TensorsIndex) and not source.tensors_index.encrypted
        wanted = self._spec.verify
        if wanted.strength >= Verify.CRC32.strength and has_hashes:
            needs_sha256 = wanted is Verify.SHA256 or header.expected_crc32 is None
            if needs_sha256 and header.expected_sha256 is not None:
                self._queue_hash(outcome)
                return
            if header.expected_crc32 is not None:
                level = Verify.CRC32
        self._count(outcome.object, outcome.tensor, min(level, wanted, key=lambda verify: verify.strength))

    def _count(self, index: int, tensor: int, level: Verify) -> None:
        self.verified += 1
        self.complete_files.add_tensor((index, tensor))
        if self.finished is not None and level.strength >= Verify.CRC32.strength:
            self.finished.add_tensor(index, tensor)
        weakest = self._result.verify_levels.get(index, level)
        self._result.verify_levels[index] = min(weakest, level, key=lambda verify: verify.strength)

    def _queue_hash(self, outcome: VerifiedTensor) -> None:
        place = self._placement[outcome.object, outcome.tensor]
        length = self._entry(outcome.object, outcome.tensor).length
        self._hashes += 1
        request = Hash(self._hashes, max(place.file_index, 0), place.offset, length, outcome.header.hash_prefix)
        self.pending_hashes.append(HashTask(request, outcome.object, outcome.tensor))

    def _discard(self, done: dict[int, list[ByteRange]], index: int, tensor: int) -> None:
        self._tracker.discard(index, tensor)
        self.complete_files.remove_tensor((index, tensor))
        hole = self._range(index, tensor)
        self._discard_bytes(index, *hole)
        self._punch(done, index, *hole)

    def _range(self, index: int, tensor: int) -> ByteRange:
        entry = self._entry(index, tensor)
        return entry.header_offset, entry.data_end

    def _entry(self, index: int, tensor: int) -> TensorEntry:
        source = self._spec.blueprint.objects[index]
        if source.tensors_index is None:
            raise InternalError(f"{source.label} has no tensors.")
        return source.tensors_index.tensors[tensor]

    def _segment_at(self, index: int, offset: int) -> int:
        at = bisect.bisect_right(
            self._by_start, (index, offset), key=lambda segment: (segment.object_index, segment.start)
        )
        segment = self._by_start[at - 1] if at else None
        if segment is None or segment.object_index != index or offset >= segment.end:
            raise InternalError(f"No segment holds offset {offset} of object {index}.")
        return segment.index
