"""Memory that files are read into on their way to a device."""

from __future__ import annotations

import ctypes
import mmap

HUGE_PAGE = 2 << 20


class StagingBuffer:
    """Anonymous memory that begins at a huge page, so that pinning it touches few pages.

    It is given back when the last view of it goes: the traceback of an error may hold one longer than anybody planned.

    Attributes:
        address: Of its first byte.
        view: Its bytes, writable.
    """

    def __init__(self, size: int) -> None:
        self._mapping = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._mapping.madvise(mmap.MADV_HUGEPAGE)
        self._anchor = ctypes.c_char.from_buffer(self._mapping)
        start = ctypes.addressof(self._anchor)
        skip = -start % HUGE_PAGE
        self.address = start + skip
        self.view = memoryview(self._mapping)[skip : skip + size]

    def prefault(self, start: int, length: int) -> None:
        """Has the kernel provide the pages of a range, without holding the interpreter's lock."""
        ctypes.memset(self.address + start, 0, length)
