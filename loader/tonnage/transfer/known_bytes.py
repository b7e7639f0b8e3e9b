"""Takes over headers of tensors that need not be fetched, because a peer's headers file has them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tonnage.cache.filesystem import translate_os_errors
from tonnage.planning.segments import NOT_WRITTEN, SpanRole, subtract_ranges
from tonnage.transfer.transfer_spec import FetchedRange

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.planning.segments import ByteRange, Piece, Segment
    from tonnage.transfer.checksum_tracker import CorruptTensor
    from tonnage.transfer.peer_transfer import PeerTransfer
    from tonnage.transfer.transfer_spec import TransferSpec
    from tonnage.transfer.verification import Verification


class KnownBytes:
    """Adds known ranges of a transfer's objects as if they had been fetched.

    Args:
        spec: The transfer's input.
        verification: Where they are added, so that tensors of which they are a part can be verified.
    """

    def __init__(self, spec: TransferSpec, verification: Verification) -> None:
        self._spec = spec
        self._verification = verification
        self._segments = spec.blueprint.segments

    def add(
        self, known: Mapping[int, Sequence[tuple[int, bytes]]], done: dict[int, list[ByteRange]]
    ) -> list[CorruptTensor]:
        """Adds all that is not done before the transfer begins; returns the corrupt tensors that are complete then.

        Args:
            known: Start and bytes of each range, by the object's index.
            done: What need not be fetched, by segment; gets what is added.
        """
        corrupt: list[CorruptTensor] = []
        for index, ranges in known.items():
            starts = dict(ranges)
            for segment in self._segments:
                if segment.object_index != index:
                    continue
                taken = done.setdefault(segment.index, [])
                for left in subtract_ranges((segment.start, segment.end), taken):
                    for piece in segment.pieces(*left):
                        if _is_known(piece, starts):
                            corrupt += self._add(segment, piece, starts[piece.start])
                            taken.append((piece.start, piece.end))
        return corrupt

    def take(self, peers: PeerTransfer) -> list[CorruptTensor]:
        """Adds what has come from a peer since the last time, in place of short ranges that no one was asked for yet.

        Returns:
            The corrupt tensors that are complete then.
        """
        corrupt: list[CorruptTensor] = []
        found = peers.take_headers()
        starts = {index: dict(ranges) for index, ranges in found.items()}
        dropped: list[int] = []
        for number, unit in peers.queue.short_units if starts else ():
            segment = self._segments[unit.segment]
            known = starts.get(segment.object_index, {})
            pieces = segment.pieces(unit.start, unit.end)
            if not all(_is_known(piece, known) for piece in pieces):
                continue
            dropped.append(number)
            for piece in pieces:
                corrupt += self._add(segment, piece, known[piece.start])
        peers.queue.drop(dropped)
        return corrupt

    def _add(self, segment: Segment, piece: Piece, content: bytes) -> list[CorruptTensor]:
        if piece.target_offset != NOT_WRITTEN:
            path = self._spec.paths[piece.file_index]
            with translate_os_errors(f"{path} can't be written"):
                descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.pwrite(descriptor, content, piece.target_offset)
                finally:
                    os.close(descriptor)
        crc = self._verification.objects.crc_of(segment.object_index, content)
        record = FetchedRange(segment.index, piece.start, piece.end, [0], [content], crc)
        self._spec.on_record(record)
        return self._verification.add(record)


def _is_known(piece: Piece, starts: Mapping[int, bytes]) -> bool:
    """Returns whether a piece is a header, or what follows the last tensor, whose bytes are known by their start."""
    if piece.role not in {SpanRole.HEADER, SpanRole.TAIL}:
        return False
    return len(starts.get(piece.start, b"")) == piece.end - piece.start
