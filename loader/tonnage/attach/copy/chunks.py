"""How tensors lie on the device, and in which pieces they get there. Pure arithmetic.

Tensors are packed into **groups**, one device allocation each, so that neighbours in a file stay neighbours and many
small tensors travel in one copy. Groups are cut into **chunks**, what one bounce buffer holds. A chunk consists of
**pieces**, contiguous both in a file and in the group. Every tensor begins at a multiple of ``ALIGNMENT`` on the device
whatever its offset in the file: about half of the tensors in ``.tensors`` files are misaligned.
All ranges include their start and exclude their end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tonnage.attach.files.tensor_info import TensorInfo

ALIGNMENT = 64
"""Bytes. Enough for every vectorized kernel that reads weights; 16 is the most that any is known to ask for."""


class Extent(NamedTuple):
    """Bytes that are contiguous in a file and in a group: ``length`` of them from ``source`` to ``target``."""

    file: int
    source: int
    target: int
    length: int


class Group(NamedTuple):
    """One device allocation.

    Attributes:
        size: Bytes, a multiple of ``ALIGNMENT``.
        extents: What is to be copied, by ascending target.
        tensors: Which tensors are in it, and the offset of each.
    """

    size: int
    extents: tuple[Extent, ...]
    tensors: tuple[tuple[TensorInfo, int], ...]


class Chunk(NamedTuple):
    """What one buffer holds: its range in the group, and the pieces that fill it (``data_bytes`` bytes).

    ``data_bytes`` is less than ``length`` where there is padding between tensors.
    """

    target: int
    length: int
    data_bytes: int
    extents: tuple[Extent, ...]


def pack_groups(records: Iterable[TensorInfo], *, group_bytes: int) -> list[Group]:
    """Decides the groups.

    Args:
        records: Tensors with data. Sorted by file and offset here, so the order doesn't matter.
        group_bytes: A group is closed before it would exceed this; one larger tensor makes a larger group.
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
    """Cuts a group into chunks of at most ``chunk_bytes`` bytes of target range.

    A new chunk also begins where less than a sixteenth of the buffer is left and the next run wouldn't fit, so that
    tensors are not torn for nothing.
    """
    start = end = 0
    extents: list[Extent] = []
    for file, source, target, length in group.extents:
        done = 0
        while done < length:
            if not extents:
                start = target + done
            room = start + chunk_bytes - (target + done)
            if room <= 0 or (extents and room < min(length - done, chunk_bytes // 16)):
                yield _chunk(start, end, extents)
                extents = []
                continue
            size = min(room, length - done)
            extents.append(Extent(file, source + done, target + done, size))
            done += size
            end = target + done
    if extents:
        yield _chunk(start, end, extents)


def _chunk(start: int, end: int, extents: list[Extent]) -> Chunk:
    size = extents[0].length if len(extents) == 1 else sum(extent.length for extent in extents)
    return Chunk(start, end - start, size, tuple(extents))


def total_bytes(groups: Sequence[Group]) -> int:
    """Bytes on the device that the groups need."""
    return sum(group.size for group in groups)


def _file_position(record: TensorInfo) -> tuple[int, int]:
    return (record.file, record.offset)


def _is_contiguous(extent: Extent, source: int, target: int) -> bool:
    return extent.source + extent.length == source and extent.target + extent.length == target


def _align_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
