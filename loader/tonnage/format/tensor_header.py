"""The header before each tensor's data: a hashed copy of its index entry, and the hashes.

The hash input is the header as stored, with the bytes of all digests set to zero and without the crypt block of
encrypted files, followed by the plaintext. ``TensorHeader.hash_prefix`` is the header's part, so a tensor is valid if
``crc32(data, crc32(header.hash_prefix)) == header.expected_crc32``, and likewise for SHA-256.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING

from tonnage.errors import FormatDamaged, FormatUnsupported
from tonnage.format.crypt_block import check_crypt_block
from tonnage.format.tensor_names import short_repr
from tonnage.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage.format.tensors_index import Preamble, TensorEntry

_U8 = struct.Struct("<B")
_U16 = struct.Struct("<H")
_U64 = struct.Struct("<Q")
_I64 = struct.Struct("<q")


class HashType(enum.IntEnum):
    """The types of hashes in a header."""

    CRC32 = 0
    """zlib's CRC-32, 4 bytes, little-endian."""
    SHA256 = 1
    """32 bytes."""

    @property
    def digest_size(self) -> int:
        """Bytes of the digest."""
        return 4 if self is HashType.CRC32 else 32


class TensorHeader(Record, frozen=True):
    """The fields of a tensor's header that are not in the index.

    Attributes:
        module_index: Index of the owning module in ``named_modules()``; 0 in state dicts. Releases 2.5.1 and 2.6.0
            wrote it off by one, so don't rely on it.
        hashes: The digests as stored. Encrypted tensors have SHA-256 only; other writers may omit some or all.
        hash_prefix: The header's part of the hash input.
        received_crc32: CRC-32 over ``hash_prefix`` and the data as it arrived, if there is no hash to compare with.
    """

    module_index: int
    hashes: Mapping[HashType, bytes]
    hash_prefix: bytes
    received_crc32: int | None = None

    @property
    def expected_crc32(self) -> int | None:
        """CRC-32 over ``hash_prefix`` and the plaintext; None if the header has none."""
        digest = self.hashes.get(HashType.CRC32)
        return None if digest is None else int.from_bytes(digest, "little")

    @property
    def expected_sha256(self) -> bytes | None:
        """SHA-256 over ``hash_prefix`` and the plaintext; None if the header has none."""
        return self.hashes.get(HashType.SHA256)


def parse_tensor_header(
    data: bytes | bytearray | memoryview, entry: TensorEntry, *, preamble: Preamble, label: str
) -> TensorHeader:
    """Parses a tensor's header and compares it with the index.

    Args:
        data: Exactly the bytes from ``entry.header_offset`` to ``entry.data_offset``.
        entry: The tensor, from the index of the same object.
        preamble: The preamble of the same object.
        label: How error texts call the object.

    Raises:
        FormatDamaged: The header belongs to another tensor, differs from the index, or is inconsistent.
        FormatUnsupported: A hash type or a compression that no released tensorizer writes.
    """
    stored = bytes(data)
    where = f"{label}, tensor {short_repr(entry.raw_name)}, header at byte {entry.header_offset}"
    try:
        return _parse(stored, entry, encrypted=preamble.encrypted, where=where)
    except struct.error as error:
        raise FormatDamaged(f"{where}: {len(stored)} bytes are too few for its fields.") from error


def _parse(stored: bytes, entry: TensorEntry, *, encrypted: bool, where: str) -> TensorHeader:
    size = entry.data_offset - entry.header_offset
    (stated,) = _U64.unpack_from(stored, 0)
    if len(stored) != size or stated != size:
        raise FormatDamaged(
            f"{where}: it should have {size} bytes by the index, states {stated}, and has {len(stored)}."
        )
    (module_index,) = _U16.unpack_from(stored, 8)
    position = 10
    identity = _encode_shared_fields(entry)
    if not stored.startswith(identity, position):
        _raise_field_mismatch(stored, entry, where=where)
    position += len(identity)
    (block,) = _U16.unpack_from(stored, position)
    position += 2
    hashes, digest_ranges = _read_hashes(stored, position, block, where=where)
    position += block
    hash_prefix = bytearray(stored)
    for start, end in digest_ranges:
        hash_prefix[start:end] = bytes(end - start)
    if encrypted:
        (block,) = _U64.unpack_from(stored, position)
        end = position + 8 + block
        if end > len(stored):
            raise FormatDamaged(f"{where}: the crypt block of {block} bytes ends after the header.")
        check_crypt_block(stored[position + 8 : end], data_length=entry.length, where=where)
        del hash_prefix[position:end]
        position = end
    (length,) = _I64.unpack_from(stored, position)
    if length < 0:
        raise FormatUnsupported(f"{where}: the data is compressed, which no released tensorizer writes.")
    if length != entry.length:
        raise FormatDamaged(f"{where}: it states {length} bytes of data, but the index {entry.length}.")
    if position + 8 != len(stored):
        raise FormatDamaged(f"{where}: its fields end at byte {position + 8}, but it has {len(stored)} bytes.")
    return TensorHeader(module_index, hashes, bytes(hash_prefix))


def _encode_shared_fields(entry: TensorEntry) -> bytes:
    """Returns the fields common to header and index, as stored in the header."""
    dtype = entry.dtype.stored_name.encode()
    return b"".join(
        (
            _U8.pack(entry.kind),
            _U16.pack(len(entry.raw_name)),
            entry.raw_name,
            _U8.pack(len(dtype)),
            dtype,
            struct.pack(f"<B{len(entry.shape)}{'Q' if entry.wide_dimensions else 'I'}", len(entry.shape), *entry.shape),
        )
    )


def _raise_field_mismatch(stored: bytes, entry: TensorEntry, *, where: str) -> None:
    """Raises an error that names the first field that differs."""
    (kind, size) = struct.unpack_from("<BH", stored, 10)
    position = 13 + size
    raw_name = stored[13:position]
    if raw_name != entry.raw_name:
        raise FormatDamaged(f"{where}: it is the header of tensor {short_repr(raw_name)}.")
    if kind != entry.kind:
        raise FormatDamaged(f"{where}: it states kind {kind}, but the index {entry.kind}.")
    (size,) = _U8.unpack_from(stored, position)
    dtype = stored[position + 1 : position + 1 + size]
    if dtype != entry.dtype.stored_name.encode():
        raise FormatDamaged(
            f"{where}: it states dtype {short_repr(dtype)}, but the index {short_repr(entry.dtype.stored_name)}."
        )
    raise FormatDamaged(f"{where}: its shape differs from the index.")


def _read_hashes(
    stored: bytes, start: int, size: int, *, where: str
) -> tuple[dict[HashType, bytes], list[tuple[int, int]]]:
    """Returns the digests, and their half-open byte ranges in the header."""
    end = start + size
    if end > len(stored):
        raise FormatDamaged(f"{where}: the hash block of {size} bytes ends after the header.")
    hashes: dict[HashType, bytes] = {}
    digest_ranges: list[tuple[int, int]] = []
    (count,) = _U8.unpack_from(stored[:end], start)
    position = start + 1
    for _ in range(count):
        number, digest_size = struct.unpack_from("<BB", stored[:end], position)
        position += 2
        if number not in {HashType.CRC32, HashType.SHA256}:
            raise FormatUnsupported(f"{where}: the hash type {number} is not supported by this release of Tonnage.")
        kind = HashType(number)
        if digest_size != kind.digest_size or kind in hashes:
            raise FormatDamaged(f"{where}: its {kind.name} of {digest_size} bytes has the wrong size or is duplicate.")
        hashes[kind] = stored[position : position + digest_size]
        digest_ranges.append((position, position + digest_size))
        position += digest_size
    if position != end:
        raise FormatDamaged(f"{where}: its {count} hashes don't fill the stated {size} bytes.")
    return hashes, digest_ranges
