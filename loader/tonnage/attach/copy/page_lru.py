"""Detects tmpfs pages that were never read since they were written.

The first ``read`` of such a page moves it from the kernel's inactive list to the active list under a global lock, which
halves the throughput of a dozen threads. The multi-generational LRU does not have these lists (Linux: mm/shmem.c
``shmem_file_read_iter``, mm/swap.c ``folio_mark_accessed``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

LRU_GEN = Path("/sys/kernel/mm/lru_gen/enabled")
MEMINFO = Path("/proc/meminfo")
_UNREAD_DIVISOR: Final = 8
"""If fewer than one in this many bytes are unread, reading all of them is as fast as copying from mappings."""


def has_unread_pages(size: int, *, lru_gen: Path = LRU_GEN, meminfo: Path = MEMINFO) -> bool:
    """Returns whether files in shared memory probably have unread pages, judging by all shared memory of this machine.

    Args:
        size: Bytes of the files.
        lru_gen: The kernel's file with the state of the multi-generational LRU.
        meminfo: The kernel's ``meminfo`` file.

    Returns:
        True if the unread bytes are at least an eighth of ``size``, or if the kernel does not report them.
    """
    if _has_multi_gen_lru(lru_gen):
        return False
    kinds = _read_meminfo(meminfo)
    if not {"Shmem", "Active(anon)"} <= kinds.keys():
        return True
    return kinds["Shmem"] - kinds["Active(anon)"] >= size / _UNREAD_DIVISOR


def _has_multi_gen_lru(lru_gen: Path) -> bool:
    try:
        return bool(int(lru_gen.read_text(), 16) & 1)
    except (OSError, ValueError):
        return False


def _read_meminfo(meminfo: Path) -> dict[str, int]:
    """Returns bytes by field name; empty if the file can't be read."""
    found = {}
    try:
        for line in meminfo.read_text().splitlines():
            name, _, value = line.partition(":")
            fields = value.split()
            if len(fields) == 2 and fields[1] == "kB":
                found[name] = int(fields[0]) << 10
    except (OSError, ValueError):
        return {}
    return found
