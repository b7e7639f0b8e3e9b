"""Removes what an entry holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.cache import commit
from tonnage.cache.lock_holders import describe_lock_holders, find_lock_holders
from tonnage.errors import CacheInUse

if TYPE_CHECKING:
    from tonnage.cache.entry import Entry


def evict(entry: Entry) -> int:
    """Removes what an entry holds, if nobody uses it, and returns the bytes that were freed.

    The entry's folder and its locks stay: a pod may have the folder mounted, and a lock that is removed while others
    wait for it would let two in.

    Raises:
        CacheInUse: It is in use or being loaded; who by, as far as it can be seen.
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
            return commit.clear(entry)
