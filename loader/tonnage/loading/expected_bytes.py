"""What each byte of an entry's files must be, by what its source has. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tonnage.planning.segments import NOT_WRITTEN, SpanRole, subtract_ranges

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage.format.tensor_header import TensorHeader
    from tonnage.planning.blueprint import Blueprint

REQUEST_BYTES = 4 << 20
"""Maximum bytes of one request for bytes that the source has no SHA-256 of."""


class SourceRange(NamedTuple):
    """Bytes of an object, from ``start`` (inclusive) to ``end`` (exclusive)."""

    item: int
    start: int
    end: int


class HashedRange(NamedTuple):
    """Bytes of a file with their SHA-256 in hex, over ``prefix`` and the bytes."""

    file: int
    start: int
    end: int
    prefix: bytes
    sha256: str
    what: str


class CopiedRange(NamedTuple):
    """Bytes of a file that are those of the source."""

    file: int
    start: int
    source: SourceRange

    @property
    def end(self) -> int:
        """End in the file, exclusive."""
        return self.start + self.source.end - self.source.start


class HashedObject(NamedTuple):
    """An object whose bytes after ``head`` are in file ranges, in order, with the SHA-256 that its source states."""

    item: int
    head: bytes
    ranges: tuple[tuple[int, int, int], ...]
    """File, start and end of each range."""
    sha256: str
    label: str


class KnownRange(NamedTuple):
    """Bytes of a file that are known; None: zeros."""

    file: int
    start: int
    end: int
    content: bytes | None


class Expectation(NamedTuple):
    """What each byte of an entry's files must be."""

    hashed: tuple[HashedRange, ...]
    objects: tuple[HashedObject, ...]
    copied: tuple[CopiedRange, ...]
    known: tuple[KnownRange, ...]


def expect(
    blueprint: Blueprint,
    stored: Mapping[tuple[int, int], bytes],
    headers: Mapping[tuple[int, int], TensorHeader],
    sha256_of_objects: Mapping[int, str],
) -> Expectation:
    """Returns what each byte of the files must be. Pure.

    Args:
        blueprint: The files.
        stored: The tensors' headers as the source has them, by (object index, tensor index).
        headers: The same, parsed.
        sha256_of_objects: The SHA-256 of objects in hex, by object index. It counts for those without hashes of their
            own.
    """
    objects = {
        at: found
        for at, sha256 in sha256_of_objects.items()
        if not blueprint.objects[at].has_hashes and (found := _hashed_object(blueprint, at, sha256)) is not None
    }
    hashed: list[HashedRange] = []
    copied: list[CopiedRange] = []
    known = [
        KnownRange(number, 0, len(file.prefix), file.prefix)
        for number, file in enumerate(blueprint.files)
        if file.prefix
    ]
    for segment in blueprint.segments:
        for piece in segment.pieces(segment.start, segment.end):
            if piece.target_offset == NOT_WRITTEN:
                continue
            key = segment.object_index, piece.tensor_index
            end = piece.target_offset + piece.end - piece.start
            sha256 = headers[key].expected_sha256 if piece.role is SpanRole.DATA and key in headers else None
            if sha256 is not None:
                what = f"the tensor {_tensor_name(blueprint, key)!r}"
                hashed.append(
                    HashedRange(
                        piece.file_index, piece.target_offset, end, headers[key].hash_prefix, sha256.hex(), what
                    )
                )
            elif segment.object_index in objects:
                continue
            elif piece.role is SpanRole.HEADER:
                known.append(KnownRange(piece.file_index, piece.target_offset, end, stored[key]))
            else:
                copied += [
                    CopiedRange(
                        piece.file_index,
                        piece.target_offset + start - piece.start,
                        SourceRange(segment.object_index, start, min(start + REQUEST_BYTES, piece.end)),
                    )
                    for start in range(piece.start, piece.end, REQUEST_BYTES)
                ]
    taken: dict[int, list[tuple[int, int]]] = {}
    ranges: list[HashedRange | CopiedRange | KnownRange] = [*hashed, *copied, *known]
    for whole in objects.values():
        for file_index, start, end in whole.ranges:
            taken.setdefault(file_index, []).append((start, end))
    for each in ranges:
        taken.setdefault(each.file, []).append((each.start, each.end))
    known += [
        KnownRange(number, start, end, None)
        for number, file in enumerate(blueprint.files)
        for start, end in subtract_ranges((0, file.size), taken.get(number, []))
    ]
    return Expectation(tuple(hashed), tuple(objects.values()), tuple(copied), tuple(known))


def _hashed_object(blueprint: Blueprint, index: int, sha256: str) -> HashedObject | None:
    """Returns an object whose SHA-256 can be computed from the files and its head; None if bytes are not stored."""
    found = blueprint.objects[index]
    segments = sorted((each for each in blueprint.segments if each.object_index == index), key=lambda each: each.start)
    ranges: list[tuple[int, int, int]] = []
    position = len(found.head)
    for segment in segments:
        for piece in segment.pieces(segment.start, segment.end):
            start = max(piece.start, position)
            if start >= piece.end:
                continue
            if start != position or piece.target_offset == NOT_WRITTEN:
                return None
            offset = piece.target_offset + start - piece.start
            ranges.append((piece.file_index, offset, offset + piece.end - start))
            position = piece.end
    return HashedObject(index, found.head, tuple(ranges), sha256, found.label) if position == found.size else None


def _tensor_name(blueprint: Blueprint, key: tuple[int, int]) -> str:
    tensors_index = blueprint.objects[key[0]].tensors_index
    return "" if tensors_index is None else tensors_index.tensors[key[1]].name
