"""How an object is verified by the checksum that its source states: which ranges, and where their bytes are. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tonnage.contract import ChecksumAlgorithm, Verify
from tonnage.planning.segments import NOT_WRITTEN, Segment, Span
from tonnage.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tonnage.contract import ObjectChecksum
    from tonnage.planning.blueprint import Blueprint


class CheckedRange(NamedTuple):
    """Bytes ``start`` to ``end`` (exclusive) of an object, and their checksum; empty if only that of all is known."""

    start: int
    end: int
    expected: bytes = b""


class ObjectCheck(Record, frozen=True):
    """How an object is verified.

    Attributes:
        checksum: The object's checksum. If it is one of parts, it is that of the checksums of all ranges.
        ranges: The parts in which the store received the object, or the whole object.
        certain: Whether the ranges are those of the store; otherwise a mismatch may only mean that they are not.
        is_stated: Whether the source states the checksum; otherwise an earlier load computed it, and it only shows that
            the bytes are the same.
    """

    checksum: ObjectChecksum
    ranges: tuple[CheckedRange, ...]
    certain: bool = True
    is_stated: bool = True

    @property
    def in_flight(self) -> bool:
        """Whether the transfer computes the checksum from the bytes as they arrive; otherwise from the file."""
        algorithm = self.checksum.algorithm
        return algorithm.is_crc and (not self.checksum.parts or algorithm is ChecksumAlgorithm.CRC32)

    @property
    def received_crc(self) -> ChecksumAlgorithm | None:
        """The CRC that workers compute of this object in addition to CRC-32."""
        algorithm = self.checksum.algorithm
        return algorithm if self.in_flight and algorithm is not ChecksumAlgorithm.CRC32 else None

    @property
    def level(self) -> Verify:
        """The level at which an object is verified that matches."""
        return Verify.SHA256 if self.checksum.algorithm.reaches_sha256 else Verify.CRC32


class Extent(NamedTuple):
    """Bytes of an output file."""

    file: int
    offset: int
    length: int


def part_ranges(size: int, part_size: int) -> tuple[CheckedRange, ...]:
    """Returns the ranges of parts of ``part_size`` bytes; the last one may be shorter."""
    return tuple(CheckedRange(start, min(start + part_size, size)) for start in range(0, size, part_size))


def cut_segments(blueprint: Blueprint, checks: Mapping[int, ObjectCheck]) -> Blueprint:
    """Returns the blueprint with spans that end where ranges do whose CRC-32 is combined from that of pieces."""
    borders = {
        index: [each.end for each in check.ranges]
        for index, check in checks.items()
        if check.in_flight and check.received_crc is None and len(check.ranges) > 1
    }
    return msgspec.structs.replace(
        blueprint,
        segments=tuple(
            cut_segment(segment, borders[segment.object_index]) if segment.object_index in borders else segment
            for segment in blueprint.segments
        ),
    )


def cut_segment(segment: Segment, borders: Iterable[int]) -> Segment:
    """Returns the segment with spans that end at all ``borders`` within it. They are in ascending order."""
    left = [border for border in borders if segment.start < border < segment.end]
    spans: list[Span] = []
    at, next_border = segment.start, 0
    for span in segment.spans:
        offset = span.target_offset
        while next_border < len(left) and left[next_border] < span.end:
            border = left[next_border]
            next_border += 1
            if border == at:
                continue
            spans.append(span._replace(end=border, target_offset=offset))
            offset = offset if offset == NOT_WRITTEN else offset + border - at
            at = border
        spans.append(span._replace(target_offset=offset))
        at = span.end
    return msgspec.structs.replace(segment, spans=tuple(spans))


def covers(segments: Sequence[Segment], start: int, end: int) -> bool:
    """Returns whether segments, in the order of their starts, have all bytes ``start`` to ``end`` of their object."""
    at = start
    for segment in segments:
        if segment.start > at:
            break
        at = max(at, segment.end)
    return at >= end


def find_extents(
    segments: Sequence[Segment], start: int, end: int, captured: Mapping[int, bytes]
) -> list[Extent | bytes]:
    """Returns where bytes ``start`` to ``end`` of an object are: in files, or those bytes that none has.

    Args:
        segments: The object's segments, in the order of their starts, which have all of these bytes.
        start: First byte.
        end: End, exclusive.
        captured: What is not written, by its start: all of it within the range.
    """
    found: list[Extent | bytes] = []
    for segment in segments:
        first, last = max(segment.start, start), min(segment.end, end)
        if first >= last:
            continue
        for piece in segment.pieces(first, last):
            if piece.target_offset == NOT_WRITTEN:
                found += _captured_bytes(captured, piece.start, piece.end)
                continue
            length = piece.end - piece.start
            before = found[-1] if found else None
            if (
                isinstance(before, Extent)
                and before.file == piece.file_index
                and before.offset + before.length == piece.target_offset
            ):
                found[-1] = before._replace(length=before.length + length)
            else:
                found.append(Extent(piece.file_index, piece.target_offset, length))
    return found


def _captured_bytes(captured: Mapping[int, bytes], start: int, end: int) -> list[bytes]:
    """Returns the bytes from ``start`` to ``end``, of which each is captured once. Most are in one piece."""
    whole = captured.get(start)
    if whole is not None and len(whole) == end - start:
        return [whole]
    return [
        content[max(start - at, 0) : end - at]
        for at, content in sorted(captured.items())
        if at < end and start < at + len(content)
    ]
