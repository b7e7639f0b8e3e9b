"""Files through a mapping: to read what lies in memory, and to ask whether it does.

A mapping that is marked as read in sequence spares pages their slow first ``read`` (see ``unread``), but its page
tables cost more than a ``read`` of pages that had theirs (Linux: mm_inline.h ``vma_has_recency``). Each thread has
mappings of its own: in one that all share they wait for each other at the kernel's count of who is using it.
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
"""Bytes whose page tables (a 512th of it) are kept until the end, when giving them back costs nobody time."""


class ThreadMappings:
    """A mapping of each file for each thread, made when it is first needed, unmapped with this object."""

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
        """Copies bytes of a file to a memory address; False where the file can't be mapped, as with no addresses left.

        Raises:
            CacheDamaged: The file has become shorter.
        """
        self._files[file].require_size(start + length)  # touching a mapping beyond its file's end would end the process
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
        """Says whether all of a range is in the page cache; yes where it can't be told.

        The kernel tells those alone who own the file or may write it.
        """
        base = self._address(file)
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        pages = -(-(start + length - first) // mmap.PAGESIZE)
        found = ctypes.create_string_buffer(pages)
        if not base or self._libc.mincore(base + first, start + length - first, found):
            return True
        return all(byte & 1 for byte in found.raw)

    def release_page_tables(self) -> None:
        """Gives the page tables back that reading took. Several threads may do it together."""
        while self._resident_ranges:
            try:
                address, length = self._resident_ranges.pop()
            except IndexError:
                return
            self._libc.madvise(address, length, mmap.MADV_DONTNEED)

    def _address(self, file: int) -> int:
        """Where this thread has the file; 0 where it can't be mapped."""
        addresses = self._thread_local.addresses
        if file not in addresses:
            mapping = _map(self._files[file])
            self._all_mappings.append(mapping)  # not the thread's: its page tables may be given back after its end
            addresses[file] = ctypes.addressof(ctypes.c_char.from_buffer(mapping)) if mapping else 0
        return addresses[file]


def _map(file: SourceFile) -> mmap.mmap | None:
    try:
        mapping = mmap.mmap(
            file.descriptor,
            file.size,
            flags=mmap.MAP_PRIVATE | MAP_NORESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,  # ctypes tells the address of writable memory only
        )
    except (OSError, ValueError):
        return None
    mapping.madvise(mmap.MADV_SEQUENTIAL)
    return mapping


class _ThreadLocal(threading.local):
    """One thread's."""

    def __init__(self) -> None:
        self.addresses: dict[int, int] = {}
