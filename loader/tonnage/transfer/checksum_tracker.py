"""Tracks which tensors are complete, and compares their CRC-32 with their headers. Pure.

A tensor's hash covers its header (with the digests zeroed) and its data. The pieces of both arrive in any order, each
with its own CRC-32. When all have arrived, their CRCs are combined and compared with the value in the header. A tensor
of a safetensors file has no header, and others may have no hash; the CRC-32 of what arrived is kept then, for later
verifications.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tonnage.errors import ChecksumMismatch, FormatDamaged, TonnageError
from tonnage.format.safetensors import SafetensorsIndex
from tonnage.format.tensor_header import HashType, TensorHeader, parse_tensor_header
from tonnage.format.tensor_names import short_repr
from tonnage.planning.segments import SpanRole
from tonnage.record import MutableRecord, Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.planning.blueprint import SourceObject
    from tonnage.planning.segments import ByteRange, Piece


class _TensorState(MutableRecord):
    """The received pieces of an incomplete tensor by start offset, those of data as (end, CRC-32)."""

    header_pieces: dict[int, bytes] = msgspec.field(default_factory=dict)
    data_pieces: dict[int, tuple[int, int]] = msgspec.field(default_factory=dict)
    missing: int = 0


class VerifiedTensor(Record, frozen=True):
    """A complete tensor. Its CRC-32 is correct, if it has one and it is checked."""

    object: int
    tensor: int
    header: TensorHeader


class CorruptTensor(Record, frozen=True):
    """A tensor that does not match its hash or its index entry, and the source range to refetch."""

    object: int
    tensor: int
    range: ByteRange
    error: TonnageError


class ChecksumTracker:
    """Tracks the tensors of all objects of a load.

    Args:
        objects: The blueprint's objects.
        check_crc32: If False, only the headers are checked, against the index.

    Attributes:
        headers: The headers of the verified tensors by (object, tensor).
    """

    def __init__(self, objects: Sequence[SourceObject], *, check_crc32: bool) -> None:
        from isal import isal_zlib  # a hit doesn't need it

        self._objects = objects
        self._isal = isal_zlib
        self._check = check_crc32
        self._incomplete: dict[tuple[int, int], _TensorState] = {}
        self.headers: dict[tuple[int, int], TensorHeader] = {}

    def add(
        self, index: int, pieces: Sequence[Piece], checksums: Sequence[int], captured: Sequence[bytes]
    ) -> list[VerifiedTensor | CorruptTensor]:
        """Adds the pieces of a part of object ``index``; returns the tensors that this completed.

        Raises:
            FormatDamaged: Something other than the end mark follows the last tensor.
        """
        settled: list[VerifiedTensor | CorruptTensor] = []
        for piece, checksum, content in zip(pieces, checksums, captured, strict=False):
            if piece.tensor_index < 0:
                if piece.role is SpanRole.TAIL and content.strip(b"\0"):
                    raise FormatDamaged(
                        f"{self._objects[index].label}: something other than the end mark follows the last tensor, "
                        f"at offset {piece.start}."
                    )
                continue
            outcome = self._add_piece(index, piece, checksum, content)
            if outcome is not None:
                settled.append(outcome)
        return settled

    def add_empty(self) -> list[VerifiedTensor]:
        """Adds the tensors of safetensors files of which nothing will arrive, because they have no data."""
        return [
            self._without_hash(index, number, _TensorState())
            for index, source in enumerate(self._objects)
            if isinstance(source.tensors_index, SafetensorsIndex)
            for number, entry in enumerate(source.tensors_index.tensors)
            if not entry.length
        ]

    def discard(self, index: int, tensor: int) -> None:
        """Forgets a tensor, because it will be refetched."""
        self._incomplete.pop((index, tensor), None)
        self.headers.pop((index, tensor), None)

    def _add_piece(
        self, index: int, piece: Piece, checksum: int, content: bytes
    ) -> VerifiedTensor | CorruptTensor | None:
        tensors = self._objects[index].tensors_index
        if tensors is None:
            return None
        entry = tensors.tensors[piece.tensor_index]
        key = (index, piece.tensor_index)
        if key in self.headers:
            return None
        state = self._incomplete.get(key)
        if state is None:
            state = self._incomplete[key] = _TensorState(missing=entry.data_end - entry.header_offset)
        if piece.role is SpanRole.HEADER:
            state.header_pieces[piece.start] = content
        else:
            state.data_pieces[piece.start] = (piece.end, checksum)
        state.missing -= piece.end - piece.start
        if state.missing:
            return None
        del self._incomplete[key]
        return self._verify(index, piece.tensor_index, state)

    def _verify(self, index: int, tensor: int, state: _TensorState) -> VerifiedTensor | CorruptTensor:
        source = self._objects[index]
        assert source.tensors_index is not None  # noqa: S101  # only tensor files have tensors
        if isinstance(source.tensors_index, SafetensorsIndex):
            return self._without_hash(index, tensor, state)
        entry = source.tensors_index.tensors[tensor]
        byte_range = (entry.header_offset, entry.data_end)
        raw = b"".join(state.header_pieces[start] for start in sorted(state.header_pieces))
        try:
            header = parse_tensor_header(raw, entry, preamble=source.tensors_index.preamble, label=source.label)
        except TonnageError as error:
            return CorruptTensor(index, tensor, byte_range, error)
        expected = header.expected_crc32
        if self._check and expected is not None and not source.tensors_index.preamble.encrypted:
            value = self._combine(self._isal.crc32(header.hash_prefix), state)
            if value != expected:
                return CorruptTensor(
                    index, tensor, byte_range, mismatch_error(source.label, entry.name, byte_range, "CRC-32")
                )
        if not header.hashes:
            header = msgspec.structs.replace(
                header, received_crc32=self._combine(self._isal.crc32(header.hash_prefix), state)
            )
        self.headers[index, tensor] = header
        return VerifiedTensor(index, tensor, header)

    def _without_hash(self, index: int, tensor: int, state: _TensorState) -> VerifiedTensor:
        """Returns a tensor without a header of its own: its CRC-32 is that of the data that arrived."""
        value = self._combine(0, state)
        header = TensorHeader(0, {HashType.CRC32: value.to_bytes(4, "little")}, b"")
        self.headers[index, tensor] = header
        return VerifiedTensor(index, tensor, header)

    def _combine(self, value: int, state: _TensorState) -> int:
        """Returns the CRC-32 of bytes with the CRC-32 ``value`` and the data after them."""
        for start in sorted(state.data_pieces):
            end, checksum = state.data_pieces[start]
            value = self._isal.crc32_combine(value, checksum, end - start)
        return value


def mismatch_error(label: str, tensor: str, byte_range: ByteRange, what: str) -> ChecksumMismatch:
    """Returns the error for a tensor that does not match a hash in its header."""
    return ChecksumMismatch(
        f"{label}: tensor {short_repr(tensor)} (bytes {byte_range[0]} to {byte_range[1] - 1}) does not match the "
        f"{what} in its header."
    )
