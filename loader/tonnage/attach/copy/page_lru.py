"""Whether the files in shared memory have been read since they were written.

A tmpfs page that was written and never read moves from the kernel's list of inactive pages to the active one with its
first ``read``, under one lock for all: a dozen threads then read at half their speed. The multi-generational LRU has no
such lists (Linux: mm/shmem.c ``shmem_file_read_iter``, mm/swap.c ``folio_mark_accessed``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

LRU_GEN = Path("/sys/kernel/mm/lru_gen/enabled")
MEMINFO = Path("/proc/meminfo")
_UNREAD_DIVISOR: Final = 8
"""A share of the files. Below it, reading all of them is as quick as any better way with the others."""


def has_unread_pages(size: int, *, lru_gen: Path = LRU_GEN, meminfo: Path = MEMINFO) -> bool:
    """Says whether files in shared memory await their slow first read, judging by all shared memory of this machine.

    Args:
        size: Of the files, bytes.
        lru_gen: Where the kernel says whether it has the multi-generational LRU.
        meminfo: Where the kernel tells how much memory there is of which kind.

    Returns:
        True where at least an eighth of the files' size was never read, and where the kernel doesn't tell.
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
    """Bytes by the kind's name; empty where the kernel doesn't tell."""
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
