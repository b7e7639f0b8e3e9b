"""Reserves the room of a load at its beginning, so that two loads that don't fit together never block each other.

What other loads of the cache have still to write is not free: their files exist with their final size from the
beginning. On a disk all blocks are allocated as well (``fallocate(2)``), before the first part: that takes
milliseconds. In a tmpfs it would take as long as writing the files, which nothing can write to meanwhile, so there a
load may find later that another program has taken its room. Journal and manifest, a few hundred bytes for each tensor,
are not reserved.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import random
import time
from typing import TYPE_CHECKING

from tonnage.cache import commit
from tonnage.cache.cache import Cache
from tonnage.cache.entry import EntryState
from tonnage.cache.filesystem import translate_os_errors
from tonnage.cache.listing import list_entries
from tonnage.cache.lock_scope import excludes_all_others
from tonnage.cache.medium import check_free_space
from tonnage.cache.partial import find_partials
from tonnage.contract.sizes import human_bytes
from tonnage.errors import InsufficientSpace, TonnageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tonnage.cache.entry import Entry
    from tonnage.cache.listing import EntryInfo

ATTEMPTS = 5
"""Two loads that begin in the same moment may both fail to allocate. Each gives back what it has, and tries again."""

MAX_PAUSE_SECONDS = 0.5
COUNTING_SECONDS = 2.0
"""How long a load waits until others have counted: longer than it takes, and anyone may hold the lock."""

MAX_THREADS = 16
MAX_LISTED = 5

ALLOCATED_BYTES = 64 << 20
"""Bytes of one ``fallocate``, which only a signal interrupts: about 20 ms in a tmpfs, below 1 ms on a disk."""

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
) -> bool:
    """Reserves room for the files of a load. If they don't fit, what interrupted loads have left is removed.

    Args:
        entry: The entry to load.
        paths: Its files, which exist with their final size.
        empty: Nothing has been written to them, so that they can be given back and allocated again.
        allocates: Whether all bytes are allocated, too. File systems without ``fallocate`` can't.
        min_free: Bytes of the medium that must remain free.
        note: Called with a sentence for each interrupted load that was removed.
        canceled: Polled; return True to give up.

    Returns:
        Whether all bytes are allocated. If not, another program may still take the room.

    Raises:
        InsufficientSpace: They don't fit, and are empty now. The message lists the largest entries beside this one.
        CacheNotWritable: A file can't be opened.
    """
    attempts = ATTEMPTS if empty else 1
    while True:
        _require_room(entry, paths, min_free=min_free, note=note, canceled=canceled)
        if not allocates:
            return False
        try:
            allocated = _allocate_all(paths, canceled)
            check_free_space(entry.path, 0, min_free=min_free)
        except InsufficientSpace:  # another load has allocated since the check
            attempts -= 1
            if not attempts or canceled():
                raise
            _give_back(paths)
            time.sleep(random.uniform(0.0, MAX_PAUSE_SECONDS))  # noqa: S311  # only to differ from the other load
        else:
            return allocated


def _require_room(
    entry: Entry,
    paths: Sequence[Path],
    *,
    min_free: int,
    note: Callable[[str], None],
    canceled: Callable[[], bool],
) -> None:
    """Checks that what is not allocated of the files fits beside what other loads have still to write.

    Raises:
        InsufficientSpace: It doesn't fit.
    """
    with _one_counts(entry.path.parent, canceled):
        while True:
            missing = sum(_unallocated_bytes(path) for path in paths)
            try:
                check_free_space(entry.path, missing, min_free=min_free, claimed=_unwritten_bytes_of_others(entry))
            except InsufficientSpace as error:
                if remove_interrupted_loads(entry, missing, note=note):
                    continue
                for path in paths:  # so that the next one that counts has this room
                    os.truncate(path, 0)
                raise InsufficientSpace(error.message + describe_entries(entry)) from error
            return


@contextlib.contextmanager
def _one_counts(root: Path, canceled: Callable[[], bool]) -> Iterator[None]:
    """Keeps out other loads that count, by a lock on the cache's folder itself, if it can be had.

    Of two loads that count at once, each would see the other's files, and both might fail.
    """
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        until = time.monotonic() + COUNTING_SECONDS
        with contextlib.suppress(OSError):  # a file system without locks
            while not _try_lock(descriptor) and time.monotonic() < until and not canceled():
                time.sleep(0.005)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unwritten_bytes_of_others(entry: Entry) -> int:
    """Returns what the files of other loads of the cache, running or interrupted, still lack."""
    if entry.is_flat:
        return 0
    total = 0
    for other in Cache(entry.path.parent).entries():
        if other.name == entry.name:
            continue
        with contextlib.suppress(TonnageError, OSError):  # it is being published or removed, or another user's
            for partial in find_partials(other):
                total += sum(_unallocated_bytes(path) for path in partial.model_dir.rglob("*") if path.is_file())
    return total


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
    if entry.is_flat:
        return []
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


def _allocate_all(paths: Sequence[Path], canceled: Callable[[], bool]) -> bool:
    from concurrent.futures import ThreadPoolExecutor  # not for a load into memory

    threads = min(len(os.sched_getaffinity(0)), MAX_THREADS)
    with ThreadPoolExecutor(threads) as pool:
        return all(list(pool.map(lambda path: _allocate(path, canceled), paths)))


def _allocate(path: Path, canceled: Callable[[], bool]) -> bool:
    """Allocates what is not allocated of a file, and returns whether the file system can.

    ``os.posix_fallocate`` would write to each block where it can't.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with translate_os_errors(f"{path} can't be allocated"):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            at, size = 0, os.fstat(descriptor).st_size
            while at < size and not canceled():
                length = min(ALLOCATED_BYTES, size - at)
                if not libc.fallocate(descriptor, 0, ctypes.c_int64(at), ctypes.c_int64(length)):
                    at += length
                    continue
                code = ctypes.get_errno()
                if code in _UNSUPPORTED:
                    return False
                if code != errno.EINTR:
                    raise OSError(code, os.strerror(code))
        finally:
            os.close(descriptor)
    return True


def _give_back(paths: Sequence[Path]) -> None:
    """Frees the files' bytes and keeps their sizes."""
    for path in paths:
        size = path.stat().st_size
        os.truncate(path, 0)
        os.truncate(path, size)
