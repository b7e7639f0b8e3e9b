"""Allocates huge pages in a tmpfs that gives them only by advice (``huge=advise``).

Such a tmpfs never gives huge pages to ``write``: they are allocated when a mapping that is advised with
``MADV_HUGEPAGE`` is accessed (Linux: mm/shmem.c ``shmem_huge_global_enabled``). So the pages of a range are populated
through a mapping just before the range is written, which costs one clearing of them and saves the allocation of 512
times as many small pages.
"""

from __future__ import annotations

import mmap
import os

HUGE_PAGE = 2 << 20
_POPULATE_WRITE = 23
"""``MADV_POPULATE_WRITE`` (Linux 5.14), not in the mmap module. Unlike an access, it fails without a signal."""


class HugePageAllocator:
    """Populates ranges of files with huge pages. Errors are ignored: the write then uses pages of any size."""

    def __init__(self) -> None:
        self._mappings: dict[int, mmap.mmap | None] = {}
        self._populated: set[tuple[int, int]] = set()

    def populate(self, descriptor: int, start: int, end: int) -> None:
        """Populates the huge pages of the range ``[start, end)``, each once."""
        for unit in range(start // HUGE_PAGE, -(-end // HUGE_PAGE)):
            if (descriptor, unit) not in self._populated:
                self._populated.add((descriptor, unit))
                self._populate_unit(descriptor, unit * HUGE_PAGE)

    def _populate_unit(self, descriptor: int, start: int) -> None:
        mapping = self._mapping(descriptor)
        if mapping is None or start >= len(mapping):
            return
        length = min(HUGE_PAGE, len(mapping) - start)
        try:
            mapping.madvise(_POPULATE_WRITE, start, length)
            mapping.madvise(mmap.MADV_DONTNEED, start, length)  # keeps the page, but not as memory of this process
        except OSError:  # an old kernel, a full tmpfs or a memory limit; writing reports the latter two
            self._mappings[descriptor] = None

    def _mapping(self, descriptor: int) -> mmap.mmap | None:
        if descriptor not in self._mappings:
            try:
                mapping = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
                mapping.madvise(mmap.MADV_HUGEPAGE)
            except (OSError, ValueError):
                self._mappings[descriptor] = None
            else:
                self._mappings[descriptor] = mapping
        return self._mappings[descriptor]
