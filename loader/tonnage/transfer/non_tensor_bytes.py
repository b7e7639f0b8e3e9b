"""Checksums of the received bytes that belong to no tensor: companions, and what is between the tensors of an object.

``tonnage verify`` compares them with the files. They are taken from what was received, not from what is on the disk:
otherwise, bytes that a crash destroyed would count as right.
"""

from __future__ import annotations

from typing import NamedTuple


class _Range(NamedTuple):
    """Where a received range of an object was written, and its CRC-32."""

    file: int
    offset: int
    length: int
    crc32: int


class NonTensorBytes:
    """Received ranges by object and their start in it."""

    def __init__(self) -> None:
        self._ranges: dict[tuple[int, int], _Range] = {}

    def add(self, index: int, start: int, *, file: int, offset: int, length: int, crc32: int) -> None:
        """Adds the range of object ``index`` from ``start``, which was written to ``file`` at ``offset``."""
        self._ranges[index, start] = _Range(file, offset, length, crc32)

    def discard(self, index: int, start: int, end: int) -> None:
        """Forgets what begins in the range of an object, because it will be received again."""
        for key in [key for key in self._ranges if key[0] == index and start <= key[1] < end]:
            del self._ranges[key]

    def checksums(self, prefixes: dict[int, bytes]) -> dict[int, tuple[int, int]]:
        """Returns the length of all these bytes of a file and their CRC-32 in the file's order, by file.

        Args:
            prefixes: For each file, the bytes at its start that were not received but computed.
        """
        from isal import isal_zlib

        totals = {file: (len(prefix), isal_zlib.crc32(prefix)) for file, prefix in prefixes.items()}
        for file, _, length, crc32 in sorted(self._ranges.values()):
            size, value = totals.get(file, (0, 0))
            totals[file] = (size + length, isal_zlib.crc32_combine(value, crc32, length))
        return totals
