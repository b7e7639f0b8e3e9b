"""Whether the files in shared memory have been read since they were written.

A tmpfs page that was written and never read moves from the kernel's list of inactive pages to the active one with its
first ``read``, under one lock for all: a dozen threads then read at half their speed. The multi-generational LRU has no
such lists (Linux: mm/shmem.c ``shmem_file_read_iter``, mm/swap.c ``folio_mark_accessed``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

LRU = Path("/sys/kernel/mm/lru_gen/enabled")
MEMINFO = Path("/proc/meminfo")
_A_FEW = 16
"""A share of the files that is not worth looking for a better way."""

FirstReads = Literal["done", "ahead", "unknown"]


def first_reads(size: int, *, lru: Path = LRU, meminfo: Path = MEMINFO) -> FirstReads:
    """Says whether files in shared memory await their slow first read, judging by all shared memory of this machine.

    Args:
        size: Of the files, bytes.
        lru: Where the kernel says whether it has the multi-generational LRU.
        meminfo: Where the kernel tells how much memory there is of which kind.

    Returns:
        ``done`` where reading is quick, ``ahead`` where at least half of the files' size was never read.
    """
    if _has_generations(lru):
        return "done"
    kinds = _read_meminfo(meminfo)
    if not {"Shmem", "Active(anon)"} <= kinds.keys():
        return "unknown"
    unread = kinds["Shmem"] - kinds["Active(anon)"]
    if unread >= size / 2:
        return "ahead"
    return "done" if unread < size / _A_FEW else "unknown"


def _has_generations(lru: Path) -> bool:
    try:
        return bool(int(lru.read_text(), 16) & 1)
    except (OSError, ValueError):
        return False


def _read_meminfo(meminfo: Path) -> dict[str, int]:
    """Bytes by the kind's name; empty where the kernel doesn't tell."""
    found = {}
    try:
        for line in meminfo.read_text().splitlines():
            name, _, rest = line.partition(":")
            amount = rest.split()
            if len(amount) == 2 and amount[1] == "kB":
                found[name] = int(amount[0]) << 10
    except (OSError, ValueError):
        return {}
    return found
