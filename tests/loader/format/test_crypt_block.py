"""The structure of crypt blocks: the rest can't be checked without the key."""

from __future__ import annotations

import struct

import pytest

from tonnage.errors import FormatDamaged, FormatUnsupported, TonnageError
from tonnage.format.crypt_block import check_crypt_block

MIB = 1 << 20


def _chunk(kind: int, contents: bytes) -> bytes:
    return struct.pack("<QH", 2 + len(contents), kind) + contents


def _block(*chunks: bytes) -> bytes:
    return struct.pack("<H", len(chunks)) + b"".join(chunks)


def _pieces(macs: int, *, piece: int = 2 * MIB, stated: int | None = None) -> bytes:
    return _chunk(2, struct.pack("<Q24sQ", piece, b"n" * 24, macs if stated is None else stated) + bytes(16 * macs))


DERIVATION = _chunk(1, struct.pack("<HQQiH16s", 1, 4, 1 << 28, 2, 16, b"s" * 16))
WHOLE = _chunk(3, b"n" * 24 + b"m" * 16)


@pytest.mark.parametrize(
    ("block", "length"),
    [
        (_block(_pieces(3)), 5 * MIB),
        (_block(_pieces(1)), 2 * MIB),
        (_block(_pieces(1)), 5 * MIB),
        (_block(DERIVATION, _pieces(2)), 2 * MIB + 1),
        (_block(WHOLE), 10),
        (_block(), 0),
        (_block(DERIVATION), 0),
    ],
)
def test_a_block_that_fits_its_data_passes(block: bytes, length: int) -> None:
    check_crypt_block(block, data_length=length, where="x")


@pytest.mark.parametrize(
    ("block", "length"),
    [
        (b"", 0),
        (_block(), 10),
        (_block(WHOLE), 0),
        (_block(WHOLE, _pieces(1)), 10),
        (_block(_pieces(2)), 5 * MIB),
        (_block(_pieces(3, piece=2 * MIB + 1)), 5 * MIB),
        (_block(_pieces(1, piece=0)), 5),
        (_block(_pieces(1, piece=960)), 5),
        (_block(_pieces(1, stated=3)), 5 * MIB),
        (_block(_chunk(3, b"short")), 10),
        (_block(_chunk(1, b"short"), WHOLE), 10),
        (_block(WHOLE) + b"\0", 10),
        (_block(WHOLE)[:-1], 10),
        (struct.pack("<HQH", 1, 1, 3), 10),
        (struct.pack("<HQH", 1, (1 << 64) - 1, 3), 10),
        (struct.pack("<H", 65535), 10),
    ],
)
def test_an_inconsistent_block_is_rejected(block: bytes, length: int) -> None:
    with pytest.raises(FormatDamaged, match=r"^s3://b/k, tensor 'w'"):
        check_crypt_block(block, data_length=length, where="s3://b/k, tensor 'w'")


def test_an_unknown_chunk_is_rejected() -> None:
    with pytest.raises(FormatUnsupported, match="type 4"):
        check_crypt_block(_block(_chunk(4, b"")), data_length=10, where="x")


def test_a_block_truncated_at_any_byte_is_rejected() -> None:
    block = _block(DERIVATION, _pieces(3))
    for length in range(len(block)):
        with pytest.raises(TonnageError):
            check_crypt_block(block[:length], data_length=5 * MIB, where="x")
