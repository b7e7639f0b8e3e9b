"""Remembers which bytes came from which peer, until they are verified, to find out who sent wrong ones. Pure.

If a tensor or an object does not match its hash and peers sent parts of it, these parts are in doubt. They are fetched
again from the source with the same borders: a part whose CRC-32 differs then came from a peer that sent wrong bytes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.planning.segments import ByteRange


class PeerRange(NamedTuple):
    """A range of an object that a peer sent, and the CRC-32 of its pieces."""

    start: int
    end: int
    node: str
    checksums: tuple[int, ...]


class Settled(NamedTuple):
    """A range in doubt that the source has sent again, and whether the peer's bytes were the same."""

    node: str
    was_right: bool


class PeerOrigin:
    """The ranges that peers sent, and those in doubt, by object."""

    def __init__(self) -> None:
        self._ranges: dict[int, list[PeerRange]] = {}
        self._doubts: dict[tuple[int, int, int], PeerRange] = {}

    def add(self, index: int, found: PeerRange) -> None:
        """Adds a range that a peer sent."""
        insort(self._ranges.setdefault(index, []), found)

    def within(self, index: int, start: int, end: int) -> list[PeerRange]:
        """Returns the ranges of peers that overlap a range of an object."""
        ranges = self._ranges.get(index, [])
        at = bisect_left(ranges, start, key=lambda each: each.end)
        found = []
        while at < len(ranges) and ranges[at].start < end:
            if ranges[at].end > start:
                found.append(ranges[at])
            at += 1
        return found

    def doubt(self, index: int, ranges: Sequence[PeerRange]) -> None:
        """Takes ranges out, because they are fetched again from the source."""
        for each in ranges:
            self._doubts[index, each.start, each.end] = each
        kept = self._ranges.get(index, [])
        doubted = set(ranges)
        self._ranges[index] = [each for each in kept if each not in doubted]

    def settle(self, index: int, start: int, end: int, checksums: Sequence[int]) -> Settled | None:
        """Compares what the source has sent with what a peer sent before; returns None if nothing was in doubt."""
        before = self._doubts.pop((index, start, end), None)
        return None if before is None else Settled(before.node, before.checksums == tuple(checksums))


def split_at(whole: ByteRange, ranges: Sequence[PeerRange], size: int) -> list[ByteRange]:
    """Returns a range in parts: the given ranges within it as they are, and the rest in parts of at most ``size``."""
    parts: list[ByteRange] = []

    def add(start: int, end: int) -> None:
        parts.extend((at, min(at + size, end)) for at in range(start, end, size))

    at = whole[0]
    for each in sorted(ranges):
        start, end = max(each.start, at), min(each.end, whole[1])
        if start >= end:
            continue
        add(at, start)
        parts.append((start, end))
        at = end
    add(at, whole[1])
    return parts
