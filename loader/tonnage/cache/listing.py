"""Lists cache entries, their state and their lock holders."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec

from tonnage.cache.entry import EntryState
from tonnage.cache.filesystem import file_sizes
from tonnage.cache.lock_holders import LockHolder, find_lock_holders
from tonnage.cache.partial import find_partials
from tonnage.errors import CacheDamaged, CacheNotWritable

if TYPE_CHECKING:
    from tonnage.cache.cache import Cache
    from tonnage.cache.entry import Entry


class EntryInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``tonnage ls``.

    ``bytes`` and ``files`` include unpublished files. Times are Unix times in seconds, 0 if unknown; ``last_used`` is
    the last time when a use of the entry began. ``in_use`` is True while the entry is held or loaded; ``holders`` are
    the processes visible from here, possibly none. ``problem`` is the reason why an entry is damaged.
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
    """Returns the row of an entry. Doesn't raise for a damaged one."""
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
    """Returns the rows of ``tonnage ls``, sorted by name.

    Raises:
        CacheNotWritable: The cache directory exists but can't be read.
    """
    return [entry_info(entry) for entry in cache.entries()]


def _sizes(entry: Entry) -> list[int]:
    sizes: list[int] = []
    with contextlib.suppress(CacheDamaged, CacheNotWritable):  # the entry is listed nevertheless
        for folder in (entry.model_dir, *(partial.model_dir for partial in find_partials(entry))):
            sizes.extend(file_sizes(folder).values())
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
    """Tries the lock, because holders in other containers are invisible. A concurrent user waits up to 2 ms."""
    if not entry.use_lock_path.exists():
        return False
    lock = entry.try_acquire_exclusive_use_lock()
    if lock is None:
        return True
    lock.release()
    return False
