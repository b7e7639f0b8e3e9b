"""Verifies objects by the checksums that their source states, while they arrive. Pure: others compute the hashes.

CRCs of received ranges are combined. Other checksums are computed from the files, behind the transfer: a part as soon
as all of it has arrived, a whole object from its start on. An object is judged when all of it is there, so that what is
fetched again is neither in a queue nor on its way.
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tonnage.contract import ChecksumAlgorithm
from tonnage.errors import ChecksumMismatch
from tonnage.format.checksums import checksum_of, combine_crcs
from tonnage.planning.object_checks import covers, find_extents
from tonnage.planning.segments import NOT_WRITTEN
from tonnage.record import MutableRecord
from tonnage.transfer.hash_pool import HashJob, RunningChecksum

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.errors import TonnageError
    from tonnage.planning.blueprint import Blueprint, SourceObject
    from tonnage.planning.object_checks import CheckedRange, ObjectCheck
    from tonnage.planning.segments import ByteRange, Piece, Segment

HASH_BYTES = 64 << 20
"""Bytes of a whole object that are hashed at a time, as soon as they are there."""


class CorruptObject(NamedTuple):
    """Ranges of an object that don't match its checksum."""

    object: int
    ranges: list[ByteRange]
    error: TonnageError


class _State(MutableRecord):
    """What has arrived of an object, and what its checksum is so far.

    Attributes:
        received: The received ranges by their start: end and CRC, of the bytes after the head.
        captured: Received bytes that no file has, by their start, if the checksum is computed from files.
        missing: Bytes that have not arrived of each of the check's ranges.
        values: The computed checksum of each of these ranges; empty: none.
        left: Number of ranges without a checksum.
        queued: The ranges of whose checksum a job was made.
        hashed: End of the bytes that are in ``running``, of a whole object.
        generation: Increased when bytes are discarded, so that later results of earlier jobs are ignored.
    """

    check: ObjectCheck
    source: SourceObject
    segments: list[Segment]
    head: bytes
    received: dict[int, tuple[int, int]] = msgspec.field(default_factory=dict)
    captured: dict[int, bytes] = msgspec.field(default_factory=dict)
    missing: list[int] = msgspec.field(default_factory=list)
    values: list[bytes] = msgspec.field(default_factory=list)
    left: int = 0
    queued: set[int] = msgspec.field(default_factory=set)
    hashed: int = 0
    running: RunningChecksum | None = None
    busy: bool = False
    generation: int = 0
    settled: bool = False

    def set_value(self, number: int, value: bytes) -> None:
        self.left -= not self.values[number]
        self.values[number] = value

    def drop_captured(self, start: int, end: int) -> None:
        for first, content in list(self.captured.items()):
            last = first + len(content)
            if first >= end or last <= start:
                continue
            del self.captured[first]
            if first < start:
                self.captured[first] = content[: start - first]
            if last > end:
                self.captured[end] = content[end - first :]


class ObjectVerification:
    """The objects of a transfer that have a check.

    Args:
        blueprint: The blueprint, cut at the borders of the checks' ranges.
        checks: The checks, by object.

    Attributes:
        verified: The objects that match their checksum.
        unverified: For objects that don't match a checksum which is not certain, a sentence on it.
        jobs: Checksums for the caller to compute; it removes them.
    """

    def __init__(self, blueprint: Blueprint, checks: Mapping[int, ObjectCheck]) -> None:
        self.verified: dict[int, ObjectCheck] = {}
        self.unverified: dict[int, str] = {}
        self.jobs: list[HashJob] = []
        self._refetched: set[int] = set()
        self._newly_settled: list[int] = []
        self._states: dict[int, _State] = {}
        for index, check in checks.items():
            segments = sorted(
                (each for each in blueprint.segments if each.object_index == index), key=lambda each: each.start
            )
            source = blueprint.objects[index]
            head = source.head[: segments[0].start] if segments else source.head[: source.size]
            state = _State(check, source, segments, head)
            self._reset(state)
            if covers(segments, len(head), source.size):
                self._states[index] = state
            else:
                self.unverified[index] = f"{source.label}: it is longer than its tensors, and the rest is not loaded."

    def add(
        self,
        index: int,
        start: int,
        end: int,
        *,
        crc: int,
        pieces: Sequence[Piece],
        crc32s: Sequence[int],
        captured: Sequence[bytes],
    ) -> None:
        """Adds received bytes of an object.

        Args:
            index: The object.
            start: First byte.
            end: End, exclusive.
            crc: Their CRC by the algorithm that the check wants of workers; not used if it wants none.
            pieces: The pieces that they are.
            crc32s: The CRC-32 of each piece.
            captured: The bytes of each piece that is not written.
        """
        state = self._states.get(index)
        if state is None:
            return
        check = state.check
        if check.in_flight and check.received_crc is None:
            for piece, value in zip(pieces, crc32s, strict=False):
                state.received[piece.start] = (min(piece.end, end), value)
        else:
            state.received[start] = (end, crc)
        if not check.in_flight:
            kept = zip(pieces, captured, strict=False)
            state.captured |= {piece.start: content for piece, content in kept if piece.target_offset == NOT_WRITTEN}
        self._advance(index, state, self._count(state, start, end, -1))

    def crc_of(self, index: int, content: bytes) -> int:
        """Returns the CRC that ``add`` needs of bytes which no worker has received."""
        state = self._states.get(index)
        algorithm = None if state is None else state.check.received_crc
        return 0 if algorithm is None else int.from_bytes(checksum_of(algorithm, content), "big")

    def discard(self, index: int, start: int, end: int) -> None:
        """Forgets bytes of an object, because they will be received again."""
        state = self._states.get(index)
        if state is None:
            return
        state.settled = False
        state.generation += 1  # an object is judged when no job is left, so only results for whole objects are lost
        state.busy = False
        self.verified.pop(index, None)
        for first, (last, crc) in list(state.received.items()):
            if first >= end or last <= start:
                continue
            del state.received[first]
            self._count(state, max(first, start), min(last, end), 1)
            # Parts of a range remain only where its CRC is not needed.
            if first < start:
                state.received[first] = (start, crc)
            if last > end:
                state.received[end] = (last, crc)
        state.drop_captured(start, end)
        for number, checked in enumerate(state.check.ranges):
            if checked.start < end and start < checked.end:
                state.left += bool(state.values[number])
                state.values[number] = b""
                state.queued.discard(number)
        state.hashed, state.running = 0, None

    def start(self) -> None:
        """Begins with what is there already: objects without bytes, and what an earlier load has left."""
        for index, state in self._states.items():
            self._advance(index, state, range(len(state.check.ranges)))

    def hashed(self, job: HashJob) -> None:
        """Takes the result of a job."""
        index, number, generation = job.key
        state = self._states[index]
        if generation != state.generation:
            return
        state.busy = False
        if state.check.checksum.parts or state.hashed == state.source.size:
            state.set_value(number, job.running.digest())
        else:
            self._queue_next(index, state)

    def settle(self) -> list[CorruptObject]:
        """Judges the objects of which everything has arrived and is computed; returns those that don't match.

        Raises:
            ChecksumMismatch: An object has been fetched again, and does not match either.
        """
        corrupt = []
        for index, state in self._states.items():
            if state.settled or state.left:
                continue
            state.settled = True
            ranges = self._mismatches(state)
            if not ranges:
                self.verified[index] = state.check
                self._newly_settled.append(index)
                continue
            if not state.check.certain:
                self._newly_settled.append(index)
                self.unverified[index] = (
                    f"{state.source.label}: its {state.check.checksum.words} is not that of equal parts, and the store "
                    "does not state where they end."
                )
                continue
            error = _mismatch_error(state, ranges)
            if index in self._refetched or not state.source.size:
                raise error
            self._refetched.add(index)
            corrupt.append(CorruptObject(index, [(each.start, each.end) for each in ranges], error))
        return corrupt

    def allow_refetch(self, index: int) -> None:
        """Lets an object be fetched again once more, because it did not match for bytes of a peer."""
        self._refetched.discard(index)

    def take_settled(self) -> list[int]:
        """Returns the objects that need no longer be waited for, each once."""
        new, self._newly_settled = self._newly_settled, []
        return new

    @property
    def checked(self) -> frozenset[int]:
        """The objects that have a check."""
        return frozenset(self._states)

    def received_ranges(self, index: int) -> list[ByteRange]:
        """Returns the ranges of an object as they were received."""
        return [(start, end) for start, (end, _) in self._states[index].received.items()]

    @property
    def unsettled(self) -> list[str]:
        """The names of objects that were not judged."""
        return [state.source.label for state in self._states.values() if not state.settled]

    def _reset(self, state: _State) -> None:
        ranges = state.check.ranges
        state.missing = [each.end - max(each.start, min(each.end, len(state.head))) for each in ranges]
        state.values = [b""] * len(ranges)
        state.left = len(ranges)

    def _count(self, state: _State, start: int, end: int, sign: int) -> range:
        """Adds the bytes to, or removes them from those that are missing of the ranges that they are in. Returns these.

        The ranges are given by their numbers.
        """
        ranges = state.check.ranges
        first = number = bisect.bisect_right(ranges, start, key=lambda each: each.start) - 1
        while number < len(ranges) and ranges[number].start < end:
            state.missing[number] += sign * (min(ranges[number].end, end) - max(ranges[number].start, start))
            number += 1
        return range(first, number)

    def _advance(self, index: int, state: _State, numbers: range) -> None:
        """Computes the checksums of those ranges that are complete, or queues what is to be hashed."""
        if not state.check.in_flight and not state.check.checksum.parts:
            self._queue_next(index, state)
            return
        for number in numbers:
            if state.missing[number] or state.values[number] or number in state.queued:
                continue
            if state.check.in_flight:
                state.set_value(number, self._combined(state, state.check.ranges[number]))
            else:
                self._queue_part(index, state, number, state.check.ranges[number])

    def _combined(self, state: _State, checked: CheckedRange) -> bytes:
        algorithm = state.check.checksum.algorithm
        crcs = []
        if checked.start < len(state.head):
            head = state.head[checked.start : checked.end]
            crcs.append((int.from_bytes(checksum_of(algorithm, head), "big"), len(head)))
        crcs += [
            (crc, end - start)
            for start, (end, crc) in sorted(state.received.items())
            if checked.start <= start < checked.end
        ]
        return combine_crcs(algorithm, crcs).to_bytes(algorithm.size, "big")

    def _queue_part(self, index: int, state: _State, number: int, checked: CheckedRange) -> None:
        state.queued.add(number)
        head = state.head[checked.start : checked.end]
        self._queue(index, state, number, head, max(checked.start, len(state.head)), checked.end)

    def _queue_next(self, index: int, state: _State) -> None:
        """Queues what follows the hashed bytes of a whole object, if it is enough or the rest."""
        if state.busy or state.values[0]:
            return
        at = max(state.hashed, len(state.head))
        while at in state.received:
            at = state.received[at][0]
        if at - state.hashed < HASH_BYTES and at != state.source.size:
            return
        head = b"" if state.hashed else state.head
        start, state.hashed = max(state.hashed, len(head)), at
        self._queue(index, state, 0, head, start, at)

    def _queue(self, index: int, state: _State, number: int, head: bytes, start: int, end: int) -> None:
        if state.running is None or state.check.checksum.parts:
            state.running = RunningChecksum(state.check.checksum.algorithm, state.source.size)
        state.busy = True
        extents = [head, *find_extents(state.segments, start, end, state.captured)]
        self.jobs.append(HashJob((index, number, state.generation), state.running, extents))

    def _mismatches(self, state: _State) -> list[CheckedRange]:
        """Returns the ranges that don't match: those with a checksum of their own, otherwise all of the object."""
        check = state.check
        wrong = [
            checked
            for checked, value in zip(check.ranges, state.values, strict=True)
            if checked.expected and checked.expected != value
        ]
        if wrong:
            return wrong
        found = b"".join(state.values)
        if check.checksum.parts:
            found = checksum_of(check.checksum.algorithm, found)
        if found == check.checksum.value:
            return []
        return [check.ranges[0]._replace(start=0, end=state.source.size)]


_ETAG_REMEDY = (
    "Upload the object again: it is damaged in the store, or a proxy on the way changes its bytes. If the store made "
    "it as a copy in parts, its ETag may be of something else, as in SeaweedFS: upload it, or load with --verify size "
    "(spec.verify)."
)
"""What to do about an ETag of parts, if the store states no other checksum."""


def _mismatch_error(state: _State, ranges: Sequence[CheckedRange]) -> ChecksumMismatch:
    first, checksum = ranges[0], state.check.checksum
    where = "" if len(state.check.ranges) == 1 else f" (bytes {first.start} to {first.end - 1})"
    return ChecksumMismatch(
        f"{state.source.label}{where} does not match the {checksum.words} that its source states, {checksum}.",
        remedy=_ETAG_REMEDY if checksum.parts and checksum.algorithm is ChecksumAlgorithm.MD5 else "",
    )
