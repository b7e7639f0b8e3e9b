"""Counts the bytes of all entries of a cache, and reserves a part of its capacity for a load.

A loader in a pod sees its own entry only; there the operator counts, see ``loading.reservation_request``.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tonnage.cache.cache import Cache
from tonnage.cache.filesystem import file_identity, translate_os_errors
from tonnage.cache.locks import FileLock, LockMode
from tonnage.cache.partial import find_partials
from tonnage.cache.reservation import describe_entries, remove_interrupted_loads
from tonnage.contract.sizes import human_bytes
from tonnage.errors import InsufficientSpace, TonnageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tonnage.cache.entry import Entry
    from tonnage.cache.partial import PartialDirectory

LOCK_NAME = ".capacity.lock"
"""Held while a load counts and reserves, in the root of the cache."""


def sees_whole_cache(entry: Entry) -> bool:
    """Returns whether the other entries of the cache are visible. In a pod, the entry's folder alone is mounted."""
    own, root = file_identity(entry.path), file_identity(entry.path.parent)
    return own is not None and root is not None and own.device == root.device


def reserve_capacity(
    entry: Entry,
    partial: PartialDirectory,
    required_bytes: int,
    *,
    capacity: int,
    note: Callable[[str], None] = lambda _: None,
    deadline: float | None = None,
    canceled: Callable[[], bool] = lambda: False,
) -> None:
    """Reserves room for an entry, so that all entries together never have more bytes than the cache's capacity.

    If it doesn't fit, what interrupted loads have left in other entries is removed. The reservation lasts as long as
    the partial directory: one of a loader that crashed is kept, as its files are, until the load is resumed or removed.

    Args:
        entry: The entry to load.
        partial: The directory of this load, whose files exist with their final size.
        required_bytes: The bytes of the whole entry once it is loaded.
        capacity: Bytes that all entries may have.
        note: Called with a sentence for each interrupted load that was removed.
        deadline: ``time.monotonic()`` at which to stop waiting for other loads that reserve.
        canceled: Polled; return True to give up.

    Raises:
        InsufficientSpace: It doesn't fit. The message has the numbers and the largest entries beside this one.
        CacheNotWritable: The lock or the reservation can't be written.
    """
    if required_bytes > capacity:
        raise InsufficientSpace(
            f"{entry.name} needs {_exact(required_bytes)}; the whole cache may have {_exact(capacity)}."
        )
    lock = FileLock(entry.path.parent / LOCK_NAME)
    lock.acquire(LockMode.EXCLUSIVE, deadline=deadline, canceled=canceled)
    with lock:
        while (used := _bytes_of_others(entry)) + required_bytes > capacity:
            if not remove_interrupted_loads(entry, used + required_bytes - capacity, note=note):
                raise InsufficientSpace(
                    f"{entry.path.parent} has not enough room: {_exact(required_bytes)} needed, "
                    f"{_exact(max(0, capacity - used))} left of the {_exact(capacity)} that its entries may have."
                    + describe_entries(entry)
                )
        with translate_os_errors(f"{partial.reserved_path} can't be written"):
            partial.reserved_path.touch()


def bytes_on_disk(entry: Entry) -> int:
    """Returns the bytes that an entry takes: its published files, and what running or interrupted loads reserved."""
    total = 0 if entry.is_flat else _total(entry.model_dir, allocated=False)
    with contextlib.suppress(TonnageError):  # it is being removed
        total += sum(entry.model_files().values()) if entry.is_flat else 0
        for partial in find_partials(entry):
            total += _total(partial.model_dir, allocated=not partial.reserved_path.exists())
    return total


def _bytes_of_others(entry: Entry) -> int:
    return sum(bytes_on_disk(other) for other in Cache(entry.path.parent).entries() if other.name != entry.name)


def _total(folder: Path, *, allocated: bool) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            total += found.st_blocks * 512 if allocated else found.st_size
    return total


def _exact(count: int) -> str:
    return human_bytes(count, style="exact")
