"""Checks the structure of the crypt block in the tensor headers of encrypted files.

Tonnage never decrypts. Without the key, only this structure and the object's size and ETag can be checked.
"""

from __future__ import annotations

import struct

from tonnage.errors import FormatDamaged, FormatUnsupported

_KEY_DERIVATION, _PIECES, _WHOLE = 1, 2, 3

_CHUNK = struct.Struct("<QH")
_DERIVATION = struct.Struct("<HQQiH")
_PIECES_HEAD = struct.Struct("<Q24sQ")
_NONCE_BYTES = 24
_MAC_BYTES = 16
_PIECE_QUANTUM = 64
_SMALLEST_PIECE = 1024


def check_crypt_block(block: bytes, *, data_length: int, where: str) -> None:
    """Checks that a crypt block is consistent with the size of the data.

    Args:
        block: The block without its 8-byte length.
        data_length: Bytes of the tensor's data, which encryption does not change; 0 for a tensor without data.
        where: Prefix of error texts: object, tensor and offset.

    Raises:
        FormatDamaged: Lengths are inconsistent, or there is not exactly one cipher for data and none without data.
        FormatUnsupported: A chunk type that no released tensorizer writes.
    """
    try:
        ciphers = _check_chunks(block, data_length=data_length, where=where)
    except struct.error as error:
        raise FormatDamaged(f"{where}: the crypt block of {len(block)} bytes is too short for its fields.") from error
    if ciphers != (1 if data_length else 0):
        raise FormatDamaged(f"{where}: the crypt block names {ciphers} ciphers for {data_length} bytes of data.")


def _check_chunks(block: bytes, *, data_length: int, where: str) -> int:
    """Returns the number of chunks that describe a cipher."""
    (count,) = struct.unpack_from("<H", block, 0)
    position = 2
    ciphers = 0
    for _ in range(count):
        size, kind = _CHUNK.unpack_from(block, position)
        end = position + 8 + size
        contents = block[position + _CHUNK.size : end]
        if size < 2 or end > len(block):
            raise FormatDamaged(f"{where}: a chunk of the crypt block has the invalid size {size}.")
        if kind == _KEY_DERIVATION:
            expected = _DERIVATION.size + _DERIVATION.unpack_from(contents, 0)[4]
        elif kind == _PIECES:
            ciphers += 1
            expected = _pieces_size(contents, data_length=data_length, where=where)
        elif kind == _WHOLE:
            ciphers += 1
            expected = _NONCE_BYTES + _MAC_BYTES
        else:
            raise FormatUnsupported(f"{where}: the crypt block has a chunk of the unknown type {kind}.")
        if len(contents) != expected:
            raise FormatDamaged(
                f"{where}: a crypt chunk of type {kind} has {len(contents)} bytes instead of {expected}."
            )
        position = end
    if position != len(block):
        raise FormatDamaged(f"{where}: the crypt block's chunks end at byte {position} of {len(block)}.")
    return ciphers


def _pieces_size(contents: bytes, *, data_length: int, where: str) -> int:
    piece: int
    macs: int
    piece, _, macs = _PIECES_HEAD.unpack_from(contents, 0)
    if piece < _SMALLEST_PIECE or piece % _PIECE_QUANTUM:
        raise FormatDamaged(f"{where}: the crypt block has the invalid piece size {piece}.")
    # There may be one authenticator for the whole tensor, for any piece size.
    if macs not in {1, -(-data_length // piece)}:
        raise FormatDamaged(f"{where}: the crypt block has {macs} authenticators for {data_length} bytes of data.")
    return _PIECES_HEAD.size + macs * _MAC_BYTES
