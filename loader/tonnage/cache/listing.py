"""What people and operators ask of a cache: what is in it, who uses it, and to remove something."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tonnage.cache.entry import EntryState
from tonnage.cache.filesystem import file_sizes
from tonnage.cache.lock_holders import LockHolder, find_lock_holders
from tonnage.errors import CacheDamaged

if TYPE_CHECKING:
    from tonnage.cache.cache import Cache
    from tonnage.cache.entry import Entry


class EntryInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One row of ``tonnage ls``.

    ``bytes`` and ``files`` are what lies there, published or not. Times are Unix times in seconds, 0 when unknown;
    ``last_used`` is when somebody last took the entry into use, not when that ended. ``in_use`` says whether the
    entry is held or being loaded; ``holders`` are those who can be seen from here, maybe none. ``problem`` says why an
    entry is damaged.
    """

    name: str
    path: str
    state: EntryState
    bytes: int
    files: int
    revision: str = ""
    layout: str = ""
    verified: str = ""
    created: float = 0.0
    last_used: float = 0.0
    in_use: bool = False
    holders: tuple[LockHolder, ...] = ()
    problem: str = ""


def entry_info(entry: Entry) -> EntryInfo:
    """Returns what is known of an entry. Doesn't raise for a damaged one."""
    status = entry.read_status()
    sizes = _sizes(entry)
    lock_holders = tuple(_visible_lock_holders(entry))
    manifest = status.manifest
    return EntryInfo(
        name=entry.name,
        path=str(entry.model_dir),
        state=status.state,
        bytes=sum(sizes),
        files=len(sizes),
        revision=manifest.revision if manifest else "",
        layout=manifest.layout if manifest else "",
        verified=manifest.verified if manifest else "",
        created=manifest.created if manifest else 0.0,
        last_used=_last_used(entry),
        in_use=bool(lock_holders) or _has_invisible_holder(entry),
        holders=lock_holders,
        problem=status.problem,
    )


def list_entries(cache: Cache) -> list[EntryInfo]:
    """Returns the rows of ``tonnage ls``, by name.

    Raises:
        CacheNotWritable: The cache folder is there but can't be read.
    """
    return [entry_info(entry) for entry in cache.entries()]


def _sizes(entry: Entry) -> list[int]:
    sizes: list[int] = []
    for folder in (entry.model_dir, entry.partial_dir):
        try:
            sizes.extend(file_sizes(folder).values())
        except CacheDamaged:  # a row for it all the same
            continue
    return sizes


def _visible_lock_holders(entry: Entry) -> list[LockHolder]:
    both = {
        holder.pid: holder for path in (entry.load_lock_path, entry.use_lock_path) for holder in find_lock_holders(path)
    }
    return [both[pid] for pid in sorted(both)]


def _last_used(entry: Entry) -> float:
    try:
        return entry.use_lock_path.stat().st_mtime
    except OSError:
        return 0.0


def _has_invisible_holder(entry: Entry) -> bool:
    """Tries the lock, for holders in other containers can't be seen. Who comes in that moment, waits 2 ms."""
    if not entry.use_lock_path.exists():
        return False
    lock = entry.try_acquire_exclusive_use_lock()
    if lock is None:
        return True
    lock.release()
    return False
