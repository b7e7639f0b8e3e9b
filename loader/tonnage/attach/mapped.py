"""Copies out of a file's mapping, whose page tables the kernel fills in bulk instead of one fault at a time."""

from __future__ import annotations

import ctypes
import mmap
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.attach.files import SourceFile

_MADV_POPULATE_READ = 22
"""Linux 5.14; where it is refused, pages come in by faults as ever."""


class Mapped:
    """Mappings of some files, for all worker threads. Calls of ctypes let other threads run; mmap.madvise doesn't."""

    def __init__(self, files: Sequence[SourceFile]) -> None:
        self._files = files
        self._addresses: dict[int, int] = {}
        self._anchors: list[ctypes.c_char] = []
        self._lock = threading.Lock()
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise
        self._madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def copy(self, number: int, offset: int, length: int, buffer: memoryview) -> None:
        """Copies ``length`` bytes at ``offset`` of file ``number`` to the start of ``buffer``.

        Raises:
            CacheDamaged: The file became shorter.
        """
        self._files[number].require(offset + length)
        source = self._address(number) + offset
        begin = source // mmap.PAGESIZE * mmap.PAGESIZE
        self._madvise(begin, source + length - begin, _MADV_POPULATE_READ)
        ctypes.memmove(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), source, length)

    def _address(self, number: int) -> int:
        with self._lock:
            if number not in self._addresses:
                anchor = ctypes.c_char.from_buffer(self._files[number].mapping())
                self._anchors.append(anchor)
                self._addresses[number] = ctypes.addressof(anchor)
            return self._addresses[number]
