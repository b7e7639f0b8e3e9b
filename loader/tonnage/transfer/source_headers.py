"""Collects what an entry's files lack of its objects: headers of tensors, and the CRC-32 of all other bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tonnage.planning.segments import SpanRole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.planning.segments import Piece


class CollectedRange(NamedTuple):
    """Bytes of an object up to ``end``: their CRC-32, and the bytes themselves if they are no data."""

    end: int
    crc32: int
    content: bytes | None


class HeaderCollector:
    """The received pieces of each object, by their start."""

    def __init__(self) -> None:
        self._pieces: dict[int, dict[int, CollectedRange]] = {}

    def add(self, index: int, pieces: Sequence[Piece], crc32s: Sequence[int], captured: Sequence[bytes]) -> None:
        """Adds pieces of object ``index``, of which the last may be incomplete."""
        found = self._pieces.setdefault(index, {})
        for piece, crc32, content in zip(pieces, crc32s, captured, strict=False):
            kept = content if piece.role in {SpanRole.HEADER, SpanRole.TAIL} else None
            found[piece.start] = CollectedRange(piece.end, crc32, kept)

    def discard(self, index: int, start: int, end: int) -> None:
        """Forgets a range of an object, because it is fetched again."""
        found = self._pieces.get(index, {})
        for at in [at for at, piece in found.items() if at < end and start < piece.end]:
            del found[at]

    def pieces(self, index: int) -> list[tuple[int, CollectedRange]]:
        """Returns the pieces of an object in order."""
        return sorted(self._pieces.get(index, {}).items())
