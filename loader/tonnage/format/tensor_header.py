"""The header in front of each tensor's data: a hashed copy of its index entry, and the hashes.

The hash input is the header as stored, with every digest's bytes set to zero and without the crypt block of encrypted
files, followed by the plaintext. ``TensorHeader.hashed`` is that first half, so that a tensor is good when
``crc32(data, crc32(header.hashed)) == header.expected_crc32``, and likewise for SHA-256.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tonnage.errors import FormatDamaged, FormatUnsupported
from tonnage.format.crypt_block import check_crypt_block
from tonnage.format.tensor_names import short_repr

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage.format.tensors_index import Preamble, TensorEntry

_U8 = struct.Struct("<B")
_U16 = struct.Struct("<H")
_U64 = struct.Struct("<Q")
_I64 = struct.Struct("<q")


class HashType(enum.IntEnum):
    """The hashes that a header can carry."""

    CRC32 = 0
    """zlib's CRC-32, 4 bytes, little-endian."""
    SHA256 = 1
    """32 bytes."""

    @property
    def digest_size(self) -> int:
        """Bytes of the digest."""
        return 4 if self is HashType.CRC32 else 32


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a tensor's header says beyond its index entry.

    Attributes:
        module_index: Where the owning module stands in ``named_modules()``; 0 in state dicts. Releases 2.5.1 and 2.6.0
            wrote it off by one, so nothing should depend on it.
        hashes: The digests as stored. Encrypted tensors have SHA-256 only; other writers may leave some or all out.
        hash_prefix: The header's part of the hash input.
    """

    module_index: int
    hashes: Mapping[HashType, bytes]
    hash_prefix: bytes

    @property
    def expected_crc32(self) -> int | None:
        """The CRC-32 of ``hashed`` and the plaintext after it; None where the file has none."""
        digest = self.hashes.get(HashType.CRC32)
        return None if digest is None else int.from_bytes(digest, "little")

    @property
    def expected_sha256(self) -> bytes | None:
        """The SHA-256 of ``hashed`` and the plaintext after it; None where the file has none."""
        return self.hashes.get(HashType.SHA256)


def parse_tensor_header(
    data: bytes | bytearray | memoryview, entry: TensorEntry, *, preamble: Preamble, label: str
) -> TensorHeader:
    """Reads a tensor's header and holds it against the index.

    Args:
        data: Exactly the bytes from ``entry.header_offset`` to ``entry.data_offset``.
        entry: The tensor, from the index of the same object.
        preamble: Of the same object.
        label: What error texts call the object.

    Raises:
        FormatDamaged: The header is another tensor's, differs from the index, or contradicts itself.
        FormatUnsupported: A hash type or a compression that no released tensorizer writes.
    """
    stored = bytes(data)
    where = f"{label}, tensor {short_repr(entry.raw_name)}, header at byte {entry.header_offset}"
    try:
        return _parse(stored, entry, encrypted=preamble.encrypted, where=where)
    except struct.error as error:
        raise FormatDamaged(f"{where}: its {len(stored)} bytes are too few for its fields.") from error


def _parse(stored: bytes, entry: TensorEntry, *, encrypted: bool, where: str) -> TensorHeader:
    size = entry.data_offset - entry.header_offset
    (stated,) = _U64.unpack_from(stored, 0)
    if len(stored) != size or stated != size:
        raise FormatDamaged(f"{where}: the index leaves it {size} bytes, it states {stated}, and has {len(stored)}.")
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
            raise FormatDamaged(f"{where}: the crypt block of {block} bytes reaches beyond the header's end.")
        check_crypt_block(stored[position + 8 : end], data_length=entry.length, where=where)
        del hash_prefix[position:end]
        position = end
    (length,) = _I64.unpack_from(stored, position)
    if length < 0:
        raise FormatUnsupported(f"{where}: the data is compressed, which no released tensorizer writes.")
    if length != entry.length:
        raise FormatDamaged(f"{where}: it states {length} bytes of data, the index {entry.length}.")
    if position + 8 != len(stored):
        raise FormatDamaged(f"{where}: its fields end at byte {position + 8} of {len(stored)}.")
    return TensorHeader(module_index, hashes, bytes(hash_prefix))


def _encode_shared_fields(entry: TensorEntry) -> bytes:
    """The fields that header and index share, as the header stores them."""
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
    """Raises the error that says which field differs first."""
    (kind, size) = struct.unpack_from("<BH", stored, 10)
    position = 13 + size
    raw_name = stored[13:position]
    if raw_name != entry.raw_name:
        raise FormatDamaged(f"{where}: it is the header of a tensor called {short_repr(raw_name)}.")
    if kind != entry.kind:
        raise FormatDamaged(f"{where}: it states the kind {kind}, the index {entry.kind}.")
    (size,) = _U8.unpack_from(stored, position)
    dtype = stored[position + 1 : position + 1 + size]
    if dtype != entry.dtype.stored_name.encode():
        raise FormatDamaged(
            f"{where}: it states the dtype {short_repr(dtype)}, the index {short_repr(entry.dtype.stored_name)}."
        )
    raise FormatDamaged(f"{where}: it states another shape than the index.")


def _read_hashes(
    stored: bytes, start: int, size: int, *, where: str
) -> tuple[dict[HashType, bytes], list[tuple[int, int]]]:
    """Returns the digests, and where in the header they stand."""
    end = start + size
    if end > len(stored):
        raise FormatDamaged(f"{where}: the hash block of {size} bytes reaches beyond the header's end.")
    hashes: dict[HashType, bytes] = {}
    digest_ranges: list[tuple[int, int]] = []
    (count,) = _U8.unpack_from(stored[:end], start)
    position = start + 1
    for _ in range(count):
        number, digest_size = struct.unpack_from("<BB", stored[:end], position)
        position += 2
        if number not in {HashType.CRC32, HashType.SHA256}:
            raise FormatUnsupported(f"{where}: its hash type {number} is not one that this release of Tonnage knows.")
        kind = HashType(number)
        if digest_size != kind.digest_size or kind in hashes:
            raise FormatDamaged(f"{where}: its {kind.name} of {digest_size} bytes is of the wrong size or there twice.")
        hashes[kind] = stored[position : position + digest_size]
        digest_ranges.append((position, position + digest_size))
        position += digest_size
    if position != end:
        raise FormatDamaged(f"{where}: its {count} hashes do not fill the {size} bytes stated for them.")
    return hashes, digest_ranges
