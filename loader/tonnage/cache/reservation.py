"""Reserves the room of a load at its beginning, so that two loads that don't fit together never block each other.

All blocks or pages of the files are allocated at once (``fallocate(2)``), while the first parts arrive. Of two loads of
which only one fits, one gets what it needs, and the other fails and gives back what it has. Allocating pages of a tmpfs
takes the time that the first write to them would take. Journal and manifest, a few hundred bytes for each tensor, are
not reserved.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import random
import threading
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

ALLOCATED_BYTES = 8 << 20
"""Bytes of one ``fallocate``, which only a signal interrupts: about 2 ms in a tmpfs. Nothing can be written to the
file meanwhile, and it may be the only one of a load."""

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
        require_room(entry, paths, min_free=min_free, note=note)
        try:
            if allocates:
                _allocate_all(paths, canceled, threads=_cores())
            check_free_space(entry.path, 0, min_free=min_free)
        except InsufficientSpace:  # another load has allocated since the check
            if not empty or attempt == ATTEMPTS - 1 or canceled():
                raise
            _give_back(paths)
            time.sleep(random.uniform(0.0, MAX_PAUSE_SECONDS))  # noqa: S311  # only to differ from the other load
        else:
            return


def require_room(
    entry: Entry, paths: Sequence[Path], *, min_free: int, note: Callable[[str], None] = lambda _: None
) -> None:
    """Checks that what is not allocated of the files fits. If not, what interrupted loads have left is removed.

    Raises:
        InsufficientSpace: It doesn't fit. The message lists the largest entries beside this one.
    """
    while True:
        missing = sum(_unallocated_bytes(path) for path in paths)
        try:
            check_free_space(entry.path, missing, min_free=min_free)
        except InsufficientSpace as error:
            if remove_interrupted_loads(entry, missing, note=note):
                continue
            raise InsufficientSpace(error.message + describe_entries(entry)) from error
        return


class RoomTaken(Exception):  # control flow: the load begins again, and allocates before it writes
    """Another load has taken the room of this one while its first parts arrived."""


class Reservation:
    """The room of a load, which is allocated while the load writes its files, or before.

    Args:
        entry: The entry to load.
        paths: Its files, which exist with their final size when the reservation begins.
    """

    def __init__(self, entry: Entry, paths: Sequence[Path]) -> None:
        self._entry = entry
        self._paths = paths
        self._canceled = threading.Event()
        self._error: TonnageError | None = None
        self._thread: threading.Thread | None = None

    def begin(
        self,
        *,
        first: bool,
        empty: bool,
        allocates: bool,
        min_free: int,
        note: Callable[[str], None],
        canceled: Callable[[], bool],
    ) -> None:
        """Begins to allocate all bytes of the files, unless they don't fit. The arguments are those of ``reserve``.

        Args:
            first: Whether all is allocated before this method returns. It is if something has been written.
            empty: See ``reserve``.
            allocates: See ``reserve``.
            min_free: See ``reserve``.
            note: See ``reserve``.
            canceled: See ``reserve``.

        Raises:
            InsufficientSpace: They don't fit.
            CacheNotWritable: A file can't be opened.
        """
        if first or not empty or not allocates:
            reserve(
                self._entry,
                self._paths,
                empty=empty,
                allocates=allocates,
                min_free=min_free,
                note=note,
                canceled=canceled,
            )
            return
        require_room(self._entry, self._paths, min_free=min_free, note=note)
        self._thread = threading.Thread(target=self._run, args=(min_free,), name="tonnage-reservation", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether no file is being allocated, which takes processor time from what receives them."""
        return self._thread is None or not self._thread.is_alive()

    def check(self) -> None:
        """Fails if the files can't be allocated.

        Raises:
            InsufficientSpace: Another load has allocated since the beginning.
            CacheNotWritable: A file can't be opened.
        """
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Waits until all is allocated, and fails as ``check`` does."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def raise_if_taken(self, error: TonnageError) -> None:
        """Raises ``RoomTaken`` if a load has failed because there is no room now that there was at its beginning."""
        if self._thread is not None and isinstance(error, InsufficientSpace):
            raise RoomTaken from error

    def close(self) -> None:
        """Ends the allocation. After this call it touches no file."""
        self._canceled.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, min_free: int) -> None:
        try:
            # Half of the cores are left to what connects and receives meanwhile.
            _allocate_all(self._paths, self._canceled.is_set, threads=_cores() // 2)
            check_free_space(self._entry.path, 0, min_free=min_free)
        except TonnageError as error:
            self._error = error


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


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _allocate_all(paths: Sequence[Path], canceled: Callable[[], bool], *, threads: int) -> None:
    with ThreadPoolExecutor(max(1, min(threads, MAX_THREADS))) as pool:
        for _ in pool.map(lambda path: _allocate(path, canceled), paths):
            pass


def _allocate(path: Path, canceled: Callable[[], bool]) -> None:
    """Allocates what is not allocated of a file. ``os.posix_fallocate`` would write to each block where it can't."""
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
