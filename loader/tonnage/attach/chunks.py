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

    from tonnage.attach.records import Record

ALIGNMENT = 64
"""Bytes. Enough for every vectorized kernel that reads weights; 16 is the most that any is known to ask for."""

MIB = 1 << 20


class Run(NamedTuple):
    """Bytes that are contiguous in a file and in a group: ``length`` of them from ``source`` to ``target``."""

    file: int
    source: int
    target: int
    length: int


class Group(NamedTuple):
    """One device allocation.

    Attributes:
        size: Bytes, a multiple of ``ALIGNMENT``.
        runs: What is to be copied, by ascending target.
        slots: Which tensors are in it, and the offset of each.
    """

    size: int
    runs: tuple[Run, ...]
    slots: tuple[tuple[Record, int], ...]


class Chunk(NamedTuple):
    """What one buffer holds: its range in the group, and the pieces that fill it, which are ``size`` bytes together.

    ``size`` is less than ``length`` where there is padding between tensors.
    """

    target: int
    length: int
    size: int
    pieces: tuple[Run, ...]


def pack(records: Iterable[Record], *, group_bytes: int) -> list[Group]:
    """Decides the groups.

    Args:
        records: Tensors with data. Sorted by file and offset here, so the order doesn't matter.
        group_bytes: A group is closed before it would exceed this; one larger tensor makes a larger group.
    """
    groups: list[Group] = []
    runs: list[Run] = []
    slots: list[tuple[Record, int]] = []
    end = 0
    for record in sorted(records, key=_place):
        target = -(-end // ALIGNMENT) * ALIGNMENT
        if slots and target + record.length > group_bytes:
            groups.append(Group(_aligned(end), tuple(runs), tuple(slots)))
            runs, slots, target = [], [], 0
        last = runs[-1] if runs else None
        if last is not None and last.file == record.file and _continues(last, record.start, target):
            runs[-1] = last._replace(length=last.length + record.length)
        else:
            runs.append(Run(record.file, record.start, target, record.length))
        slots.append((record, target))
        end = target + record.length
    if slots:
        groups.append(Group(_aligned(end), tuple(runs), tuple(slots)))
    return groups


def chunks_of(group: Group, *, chunk_bytes: int) -> Iterator[Chunk]:
    """Cuts a group into chunks of at most ``chunk_bytes`` bytes of target range.

    A new chunk also begins where less than a sixteenth of the buffer is left and the next run wouldn't fit, so that
    tensors are not torn for nothing.
    """
    start = end = 0
    pieces: list[Run] = []
    for file, source, target, length in group.runs:
        done = 0
        while done < length:
            if not pieces:
                start = target + done
            room = start + chunk_bytes - (target + done)
            if room <= 0 or (pieces and room < min(length - done, chunk_bytes // 16)):
                yield _chunk(start, end, pieces)
                pieces = []
                continue
            size = min(room, length - done)
            pieces.append(Run(file, source + done, target + done, size))
            done += size
            end = target + done
    if pieces:
        yield _chunk(start, end, pieces)


def _chunk(start: int, end: int, pieces: list[Run]) -> Chunk:
    size = pieces[0].length if len(pieces) == 1 else sum(piece.length for piece in pieces)
    return Chunk(start, end - start, size, tuple(pieces))


def total_bytes(groups: Sequence[Group]) -> int:
    """Bytes on the device that the groups need."""
    return sum(group.size for group in groups)


def _place(record: Record) -> tuple[int, int]:
    return (record.file, record.start)


def _continues(run: Run, source: int, target: int) -> bool:
    return run.source + run.length == source and run.target + run.length == target


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
