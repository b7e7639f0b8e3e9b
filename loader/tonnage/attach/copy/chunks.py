"""Computes where tensors are placed on a device, and the chunks in which they are copied. Pure.

Tensors are packed into **groups**, one device allocation each, in the order of the file, so that many small tensors are
copied at once. Groups are split into **chunks**: the unit of a copy, what one staging buffer holds. A chunk consists of
**extents**, ranges that are contiguous both in a file and in the group. Every tensor begins at a multiple of
``ALIGNMENT`` on the device, whatever its offset in the file: about half of the tensors in ``.tensors`` files are
misaligned. All ranges include their start and exclude their end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tonnage.attach.files.tensor_info import TensorInfo

ALIGNMENT = 64
"""Bytes. Enough for all vectorized kernels that read weights; none is known to need more than 16."""


class Extent(NamedTuple):
    """Contiguous bytes: ``length`` bytes at ``source`` in the file, which are copied to ``target`` in the group."""

    file: int
    source: int
    target: int
    length: int


class Group(NamedTuple):
    """One device allocation.

    Attributes:
        size: Bytes, a multiple of ``ALIGNMENT``.
        extents: Extents to copy, by ascending target.
        tensors: The tensors of the group, with their offsets in it.
    """

    size: int
    extents: tuple[Extent, ...]
    tensors: tuple[tuple[TensorInfo, int], ...]


class Chunk(NamedTuple):
    """The contents of one buffer: a range of the group, and the extents in it (``data_bytes`` bytes in all).

    ``data_bytes`` is less than ``length`` if there is padding between tensors.
    """

    target: int
    length: int
    data_bytes: int
    extents: tuple[Extent, ...]


def pack_groups(records: Iterable[TensorInfo], *, group_bytes: int) -> list[Group]:
    """Packs tensors into groups.

    Args:
        records: Tensors with data, in any order. They are sorted by file and offset.
        group_bytes: Maximum size of a group; a tensor that is larger gets a group of its own.
    """
    groups: list[Group] = []
    extents: list[Extent] = []
    tensors: list[tuple[TensorInfo, int]] = []
    end = 0
    for record in sorted(records, key=_file_position):
        target = -(-end // ALIGNMENT) * ALIGNMENT
        if tensors and target + record.length > group_bytes:
            groups.append(Group(_align_up(end), tuple(extents), tuple(tensors)))
            extents, tensors, target = [], [], 0
        last = extents[-1] if extents else None
        if last is not None and last.file == record.file and _is_contiguous(last, record.offset, target):
            extents[-1] = last._replace(length=last.length + record.length)
        else:
            extents.append(Extent(record.file, record.offset, target, record.length))
        tensors.append((record, target))
        end = target + record.length
    if tensors:
        groups.append(Group(_align_up(end), tuple(extents), tuple(tensors)))
    return groups


def split_group(group: Group, *, chunk_bytes: int) -> Iterator[Chunk]:
    """Splits a group into chunks whose target range has at most ``chunk_bytes`` bytes.

    A new chunk also begins if less than a sixteenth of the buffer is left and the next extent doesn't fit, so that
    tensors are not split needlessly.
    """
    start = end = 0
    extents: list[Extent] = []
    for file, source, target, length in group.extents:
        done = 0
        while done < length:
            if not extents:
                start = target + done
            space = start + chunk_bytes - (target + done)
            if space <= 0 or (extents and space < min(length - done, chunk_bytes // 16)):
                yield _chunk(start, end, extents)
                extents = []
                continue
            size = min(space, length - done)
            extents.append(Extent(file, source + done, target + done, size))
            done += size
            end = target + done
    if extents:
        yield _chunk(start, end, extents)


def _chunk(start: int, end: int, extents: list[Extent]) -> Chunk:
    size = extents[0].length if len(extents) == 1 else sum(extent.length for extent in extents)
    return Chunk(start, end - start, size, tuple(extents))


def total_bytes(groups: Sequence[Group]) -> int:
    """Returns the bytes of device memory that the groups need."""
    return sum(group.size for group in groups)


def _file_position(record: TensorInfo) -> tuple[int, int]:
    return (record.file, record.offset)


def _is_contiguous(extent: Extent, source: int, target: int) -> bool:
    return extent.source + extent.length == source and extent.target + extent.length == target


def _align_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
