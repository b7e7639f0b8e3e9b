"""Removes the files of an entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.cache import commit
from tonnage.cache.artifacts import remove_artifacts
from tonnage.cache.lock_holders import describe_lock_holders, find_lock_holders
from tonnage.errors import CacheInUse

if TYPE_CHECKING:
    from tonnage.cache.entry import Entry


def evict(entry: Entry) -> int:
    """Removes the files of an entry that is not in use, and returns the number of bytes freed.

    The entry's directory and locks remain: a pod may have the directory mounted, and removing a lock file that others
    wait for would allow two owners.

    Raises:
        CacheInUse: It is in use or being loaded; the message lists the processes visible from here.
        CacheNotWritable: Something can't be removed. What remains is not visible as a model.
    """
    if not entry.exists():
        return 0
    use_lock = entry.try_acquire_exclusive_use_lock()
    if use_lock is None:
        raise CacheInUse(f"{entry.name} is in use by {describe_lock_holders(find_lock_holders(entry.use_lock_path))}.")
    with use_lock:
        load_lock = entry.try_acquire_load_lock()
        if load_lock is None:
            raise CacheInUse(
                f"{entry.name} is being loaded by {describe_lock_holders(find_lock_holders(entry.load_lock_path))}."
            )
        with load_lock:
            return commit.clear(entry) + remove_artifacts(entry)
