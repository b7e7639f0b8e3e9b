"""Reads files in memory through mappings, and checks whether a range is in the page cache.

A mapping with ``MADV_SEQUENTIAL`` avoids the slow first ``read`` of each page (see ``read_ways``; Linux: mm_inline.h
``vma_has_recency``), but its page tables make it slower than ``read`` for pages that were read before. Each thread has
mappings of its own, because threads that share one contend for its reference count in the kernel.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from typing import TYPE_CHECKING

from tonnage.attach.files.source_file import MAP_NORESERVE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.attach.files.source_file import SourceFile

MAX_RESIDENT_BYTES = 64 << 30
"""Bytes whose page tables (1/512 of the bytes) are kept until the end, when freeing them no longer delays the copy."""


class ThreadMappings:
    """A mapping of each file for each thread, created on first use and unmapped with this object."""

    def __init__(self, files: Sequence[SourceFile]) -> None:
        self._files = files
        self._thread_local = _ThreadLocal()
        self._all_mappings: list[mmap.mmap | None] = []
        self._resident_ranges: list[tuple[int, int]] = []
        self._resident_bytes = 0
        self._libc = ctypes.CDLL(None)
        self._libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]

    def read(self, file: int, start: int, length: int, address: int) -> bool:
        """Copies bytes of a file to a memory address; False if the file can't be mapped, for lack of address space.

        Raises:
            CacheDamaged: The file became shorter.
        """
        self._files[file].require_size(start + length)  # reading a mapping beyond the file's end raises SIGBUS
        base = self._address(file)
        if not base:
            return False
        ctypes.memmove(address, base + start, length)
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        last = (start + length) // mmap.PAGESIZE * mmap.PAGESIZE
        self._resident_ranges.append((base + first, last - first))
        self._resident_bytes += length
        if self._resident_bytes > MAX_RESIDENT_BYTES:
            self.release_page_tables()
        return True

    def is_resident(self, file: int, start: int, length: int) -> bool:
        """Returns whether all of a range is in the page cache; True if unknown.

        The kernel reports it only to the file's owner and to processes that may write the file.
        """
        base = self._address(file)
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        pages = -(-(start + length - first) // mmap.PAGESIZE)
        found = ctypes.create_string_buffer(pages)
        if not base or self._libc.mincore(base + first, start + length - first, found):
            return True
        return all(byte & 1 for byte in found.raw)

    def release_page_tables(self) -> None:
        """Frees the page tables of ranges that were read. Thread-safe."""
        while self._resident_ranges:
            try:
                address, length = self._resident_ranges.pop()
            except IndexError:
                return
            self._libc.madvise(address, length, mmap.MADV_DONTNEED)

    def _address(self, file: int) -> int:
        """Returns the address of this thread's mapping of the file; 0 if it can't be mapped."""
        addresses = self._thread_local.addresses
        if file not in addresses:
            mapping = _map(self._files[file])
            self._all_mappings.append(mapping)  # outlives the thread: page tables may be freed after the thread ended
            addresses[file] = ctypes.addressof(ctypes.c_char.from_buffer(mapping)) if mapping else 0
        return addresses[file]


def _map(file: SourceFile) -> mmap.mmap | None:
    try:
        mapping = mmap.mmap(
            file.descriptor,
            file.size,
            flags=mmap.MAP_PRIVATE | MAP_NORESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,  # ctypes returns the address of writable memory only
        )
    except (OSError, ValueError):
        return None
    mapping.madvise(mmap.MADV_SEQUENTIAL)
    return mapping


class _ThreadLocal(threading.local):
    """Addresses of a thread's mappings, by file number."""

    def __init__(self) -> None:
        self.addresses: dict[int, int] = {}
