"""Computes the checksums that stores keep of objects, and combines those of adjacent ranges.

CRC-32 is isal's, hashes are hashlib's. CRC-64/NVME and CRC-32C are compiled from ``loader/native/crc.c``: the library
that has both, awscrt, takes 37 ms and 7 MB in each worker. Without the compiled part, it is used if it is installed.
"""

from __future__ import annotations

import zlib
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tonnage.contract import ChecksumAlgorithm

if TYPE_CHECKING:
    import ctypes
    import hashlib
    from collections.abc import Callable, Iterable

    CrcUpdate = Callable[[bytes, int], int]
    """``(data, value) -> value``."""

LIBRARY = Path(__file__).with_name("crc.so")
ABI = 1
"""The version of the functions; a library with another one is not used."""
MAX_LENGTH_BITS = 63
"""Ranges have fewer than two to the power of this many bytes."""
_WIDTHS = {ChecksumAlgorithm.CRC64NVME: 64, ChecksumAlgorithm.CRC32C: 32, ChecksumAlgorithm.CRC32: 32}
_POLYNOMIALS = {
    ChecksumAlgorithm.CRC64NVME: 0x9A6C9329AC4BC9B5,
    ChecksumAlgorithm.CRC32C: 0x82F63B78,
    ChecksumAlgorithm.CRC32: 0xEDB88320,
}
"""The polynomials without their highest term, reflected: the lowest bit is the highest power."""


def load_library(path: Path = LIBRARY) -> ctypes.PyDLL | None:
    """Returns the compiled part; None if it is missing, was built for another machine, or has another ABI.

    Its calls keep the interpreter's lock: they take microseconds, less than releasing it and getting it back.
    """
    import ctypes  # only where such a checksum is computed

    try:
        library = ctypes.PyDLL(str(path))
        library.crc_abi.restype = ctypes.c_int
        if library.crc_abi() != ABI:
            return None
        for function in (library.crc64nvme, library.crc32c, library.crc32):
            function.restype = ctypes.c_uint64
            function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64]
    except (OSError, AttributeError):
        return None
    return library


@cache
def crc_function(algorithm: ChecksumAlgorithm) -> CrcUpdate | None:
    """Returns what computes a CRC; None if nothing here does, or if the algorithm is not a CRC."""
    if algorithm is ChecksumAlgorithm.CRC32:
        from isal import isal_zlib

        crc32: CrcUpdate = isal_zlib.crc32
        return crc32
    if not algorithm.is_crc:
        return None
    library = load_library()
    if library is None:
        return _crt_function(algorithm)
    compiled = getattr(library, algorithm.value)

    def update(data: bytes, value: int) -> int:
        result: int = compiled(data, len(data), value)
        return result

    return update


def _crt_function(algorithm: ChecksumAlgorithm) -> CrcUpdate | None:
    try:
        from awscrt import checksums
    except ImportError:
        return None
    found: CrcUpdate = getattr(checksums, algorithm.value)
    return found


def can_compute(algorithm: ChecksumAlgorithm) -> bool:
    """Returns whether this installation has what computes the checksum, without loading it."""
    if algorithm is ChecksumAlgorithm.CRC32 or not algorithm.is_crc or LIBRARY.is_file():
        return True
    from importlib.util import find_spec

    return find_spec("awscrt") is not None


def checksum_of(algorithm: ChecksumAlgorithm, data: bytes) -> bytes:
    """Returns the checksum of data, big-endian for a CRC. The algorithm must be one that ``can_compute``.

    For little data, such as indexes, which hits read: CRC-32 is zlib's, whose import costs nothing.
    """
    if algorithm is ChecksumAlgorithm.CRC32:
        return zlib.crc32(data).to_bytes(4, "big")
    crc = crc_function(algorithm)
    if crc is not None:
        return crc(data, 0).to_bytes(algorithm.size, "big")
    running = new_hash(algorithm, len(data))
    running.update(data)
    return running.digest()


def new_hash(algorithm: ChecksumAlgorithm, size: int) -> hashlib._Hash:
    """Returns a hash of hashlib's, to be updated with ``size`` bytes. A Git object ID begins with their number."""
    import hashlib

    if algorithm is ChecksumAlgorithm.GITSHA1:
        return hashlib.new("sha1", b"blob %d\0" % size, usedforsecurity=False)
    return hashlib.new(algorithm.value, usedforsecurity=False)


def combine_crcs(algorithm: ChecksumAlgorithm, ranges: Iterable[tuple[int, int]]) -> int:
    """Returns the CRC of adjacent ranges, given as (CRC, length in bytes) in their order."""
    total = 0
    for value, length in ranges:
        total = _multiply(algorithm, _shift(algorithm, length), total) ^ value if total else value
    return total


def _multiply(algorithm: ChecksumAlgorithm, first: int, second: int) -> int:
    """Returns the product of two polynomials over GF(2), modulo that of the algorithm. All are reflected."""
    polynomial = _POLYNOMIALS[algorithm]
    product = 0
    for bit in range(_WIDTHS[algorithm] - 1, -1, -1):
        if first >> bit & 1:
            product ^= second
        second = second >> 1 ^ (polynomial if second & 1 else 0)
    return product


@lru_cache(maxsize=4096)
def _shift(algorithm: ChecksumAlgorithm, length: int) -> int:
    """Returns x to the power of the bits in ``length`` bytes: what a CRC is multiplied with if so many bytes follow."""
    result = 1 << (_WIDTHS[algorithm] - 1)
    for bit, power in enumerate(_powers(algorithm)):
        if length >> bit & 1:
            result = _multiply(algorithm, power, result)
    return result


@cache
def _powers(algorithm: ChecksumAlgorithm) -> tuple[int, ...]:
    """Returns x to the power of the bits in 1, 2, 4 and so on bytes."""
    found = [1 << (_WIDTHS[algorithm] - 9)]
    while len(found) < MAX_LENGTH_BITS:
        found.append(_multiply(algorithm, found[-1], found[-1]))
    return tuple(found)
