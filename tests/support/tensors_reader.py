"""Reads a whole ``.tensors`` file from memory with the loader's parsers and verifies every hash."""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING, NamedTuple

from tonnage.errors import ChecksumMismatch, FormatDamaged
from tonnage.format.tensor_header import TensorHeader, parse_tensor_header
from tonnage.format.tensors_index import (
    PREAMBLE_BYTES,
    TERMINATOR,
    TensorEntry,
    TensorsIndex,
    parse_index,
    parse_preamble,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class VerifiedTensor(NamedTuple):
    """A tensor whose hashes match."""

    entry: TensorEntry
    header: TensorHeader
    data: bytes


def read_index(data: bytes, *, name: str = "s3://models/a.tensors") -> TensorsIndex:
    preamble = parse_preamble(data[:PREAMBLE_BYTES], object_size=len(data), label=name)
    return parse_index(preamble, data[PREAMBLE_BYTES : preamble.body_offset], object_size=len(data), label=name)


def read_tensors(
    data: bytes,
    *,
    name: str = "s3://models/a.tensors",
    decrypt: Callable[[TensorEntry, bytes], bytes] | None = None,
) -> dict[tuple[str | int, ...], VerifiedTensor]:
    """Reads all tensors and verifies their hashes.

    Args:
        data: The file.
        name: For error messages.
        decrypt: Decrypts a tensor's data; None: hashes of encrypted tensors are not verified.

    Raises:
        TonnageError: The file is damaged or not supported.
    """
    file = read_index(data, name=name)
    tensors = {}
    for entry in file.tensors:
        header = parse_tensor_header(
            data[entry.header_offset : entry.data_offset], entry, preamble=file.preamble, label=name
        )
        contents = data[entry.data_offset : entry.data_end]
        if file.preamble.encrypted and entry.length and decrypt is not None:
            contents = decrypt(entry, contents)
        if not file.preamble.encrypted or not entry.length or decrypt is not None:
            _check_hashes(header, contents, f"{name}, tensor {entry.name!r}")
        tensors[entry.path] = VerifiedTensor(entry, header, contents)
    if data[file.body_end - len(TERMINATOR) : file.body_end] != TERMINATOR:
        raise FormatDamaged(f"{name}: the file does not end with 8 zero bytes")
    return tensors


def _check_hashes(header: TensorHeader, contents: bytes, context: str) -> None:
    crc32, sha256 = header.expected_crc32, header.expected_sha256
    if crc32 is not None and crc32 != zlib.crc32(contents, zlib.crc32(header.hash_prefix)):
        raise ChecksumMismatch(f"{context}: CRC-32")
    if sha256 is not None and sha256 != hashlib.sha256(header.hash_prefix + contents).digest():
        raise ChecksumMismatch(f"{context}: SHA-256")
