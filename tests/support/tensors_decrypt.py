"""Decrypts tensors that tensorizer encrypted with a key, so that hashes can be compared with the plaintext."""

from __future__ import annotations

import importlib
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage.format.tensors_index import TensorEntry


def make_decrypt(file: bytes, key: bytes) -> Callable[[TensorEntry, bytes], bytes]:
    """Returns a function that decrypts a tensor's data.

    Args:
        file: The whole file; its tensor headers have the nonces.
        key: 32 bytes.
    """

    secretbox_open: Callable[[bytes, bytes, bytes], bytes] = importlib.import_module("libnacl").crypto_secretbox_open

    def decrypt(entry: TensorEntry, data: bytes) -> bytes:
        header = file[entry.header_offset : entry.data_offset]
        dimensions = len(entry.shape) * (8 if entry.wide_dimensions else 4)
        position = 15 + len(entry.raw_name) + len(entry.dtype.stored_name) + dimensions
        (hash_block,) = struct.unpack_from("<H", header, position)
        position += 2 + hash_block + 8
        count, _, kind, piece, nonce, macs = struct.unpack_from("<HQHQ24sQ", header, position)
        assert (count, kind) == (1, 2)
        position += struct.calcsize("<HQHQ24sQ")
        first = int.from_bytes(nonce, "little")
        plain = bytearray()
        for number in range(macs):
            mac = header[position + 16 * number : position + 16 * (number + 1)]
            cipher = data if macs == 1 else data[piece * number : piece * (number + 1)]
            plain += secretbox_open(mac + cipher, (first + number).to_bytes(24, "little"), key)
        return bytes(plain)

    return decrypt
