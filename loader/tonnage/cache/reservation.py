"""Reserves the room of a load before its first byte, so that two loads that don't fit together never block each other.

All blocks or pages of the files are allocated at once (``fallocate(2)``). Of two loads of which only one fits, one gets
what it needs, and the other fails and gives back what it has. Allocating pages of a tmpfs takes the time that the first
write to them would take. Journal and manifest, a few hundred bytes for each tensor, are not reserved.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tonnage.cache import commit
from tonnage.cache.cache import Cache
from tonnage.cache.entry import EntryState
from tonnage.cache.filesystem import translate_os_errors
from tonnage.cache.listing import list_entries
from tonnage.cache.lock_scope import excludes_all_others
from tonnage.cache.medium import check_free_space
from tonnage.contract.sizes import human_bytes
from tonnage.errors import InsufficientSpace, TonnageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tonnage.cache.entry import Entry
    from tonnage.cache.listing import EntryInfo

ATTEMPTS = 5
"""Two loads that begin in the same moment may both fail to allocate. Each gives back what it has, and tries again."""

MAX_PAUSE_SECONDS = 0.5
MAX_THREADS = 16
MAX_LISTED = 5

_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def reserve(
    entry: Entry,
    paths: Sequence[Path],
    *,
    empty: bool,
    allocates: bool,
    min_free: int,
    note: Callable[[str], None] = lambda _: None,
    canceled: Callable[[], bool] = lambda: False,
) -> None:
    """Allocates all bytes of the files of a load. If they don't fit, what interrupted loads have left is removed.

    On file systems without ``fallocate``, only the free space is checked.

    Args:
        entry: The entry to load.
        paths: Its files, which exist with their final size.
        empty: Nothing has been written to them, so that they can be given back and allocated again.
        allocates: False: only check the free space, because ``fallocate`` would allocate small pages.
        min_free: Bytes of the medium that must remain free.
        note: Called with a sentence for each interrupted load that was removed.
        canceled: Polled; return True to give up.

    Raises:
        InsufficientSpace: They don't fit. The message lists the largest entries beside this one.
        CacheNotWritable: A file can't be opened.
    """
    for attempt in itertools.count():
        missing = sum(_unallocated_bytes(path) for path in paths)
        try:
            check_free_space(entry.path, missing, min_free=min_free)
        except InsufficientSpace as error:
            if remove_interrupted_loads(entry, missing, note=note):
                continue
            raise InsufficientSpace(error.message + describe_entries(entry)) from error
        try:
            if allocates:
                _allocate_all(paths, canceled)
            check_free_space(entry.path, 0, min_free=min_free)
        except InsufficientSpace:  # another load has allocated since the check
            if not empty or attempt == ATTEMPTS - 1 or canceled():
                raise
            _give_back(paths)
            time.sleep(random.uniform(0.0, MAX_PAUSE_SECONDS))  # noqa: S311  # only to differ from the other load
        else:
            return


def remove_interrupted_loads(entry: Entry, required_bytes: int, *, note: Callable[[str], None]) -> bool:
    """Removes what interrupted loads have left in other entries beside this one, the longest unused first.

    Entries that are in use or being loaded, and those that have published files, are not touched; nor is any, where
    locks may lock nothing.

    Args:
        entry: The entry that needs room.
        required_bytes: How much.
        note: Called with a sentence for each entry.

    Returns:
        Whether something was removed.
    """
    freed = 0
    for row in sorted(_neighbors(entry), key=lambda row: row.last_used):
        if row.state is EntryState.PARTIAL and freed < required_bytes:
            removed = _clear_if_interrupted(Cache(entry.path.parent).entry(row.name))
            freed += removed
            if removed:
                size = human_bytes(removed)
                note(f"What an interrupted load had left in {row.name} was removed to make room: {size}.")
    return freed > 0


def describe_entries(entry: Entry) -> str:
    """Returns a sentence with the largest entries beside this one; empty if there are none."""
    rows = sorted(_neighbors(entry), key=lambda row: -row.bytes)
    if not rows:
        return ""
    shown = ", ".join(
        f"{row.name} with {human_bytes(row.bytes)} ({row.state.value}{', in use' if row.in_use else ''})"
        for row in rows[:MAX_LISTED]
    )
    more = f", and {len(rows) - MAX_LISTED} more" if len(rows) > MAX_LISTED else ""
    return f" Beside it: {shown}{more}."


def _neighbors(entry: Entry) -> list[EntryInfo]:
    try:
        return [row for row in list_entries(Cache(entry.path.parent)) if row.name != entry.name]
    except TonnageError:  # a container may see its own entry only
        return []


def _clear_if_interrupted(entry: Entry) -> int:
    try:
        use_lock = entry.try_acquire_exclusive_use_lock()
        if use_lock is None:
            return 0
        with use_lock:
            load_lock = entry.try_acquire_load_lock()
            if load_lock is None:
                return 0
            with load_lock:
                is_interrupted = excludes_all_others(load_lock) and entry.state is EntryState.PARTIAL
                return commit.clear(entry) if is_interrupted else 0
    except TonnageError:  # of another user, for example
        return 0


def _unallocated_bytes(path: Path) -> int:
    with translate_os_errors(f"{path} can't be accessed"):
        found = path.stat()
    return max(0, found.st_size - found.st_blocks * 512)


def _allocate_all(paths: Sequence[Path], canceled: Callable[[], bool]) -> None:
    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), MAX_THREADS)) as pool:
        for _ in pool.map(lambda path: _allocate(path, canceled), paths):
            pass


def _allocate(path: Path, canceled: Callable[[], bool]) -> None:
    """Allocates what is not allocated of a file. ``os.posix_fallocate`` would write to each block where it can't."""
    libc = ctypes.CDLL(None, use_errno=True)
    with translate_os_errors(f"{path} can't be allocated"):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            size = os.fstat(descriptor).st_size
            while size and not canceled():
                if not libc.fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
                    return
                code = ctypes.get_errno()
                if code in _UNSUPPORTED:
                    return
                if code != errno.EINTR:
                    raise OSError(code, os.strerror(code))
        finally:
            os.close(descriptor)


def _give_back(paths: Sequence[Path]) -> None:
    """Frees the files' bytes and keeps their sizes."""
    for path in paths:
        size = path.stat().st_size
        os.truncate(path, 0)
        os.truncate(path, size)
