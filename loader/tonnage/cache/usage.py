"""What people and operators ask of a cache: what is in it, who uses it, and to remove something."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tonnage.cache.entry import State
from tonnage.cache.files import files_below
from tonnage.cache.holders import Holder, describe_holders, holders
from tonnage.errors import CacheDamaged, CacheInUse

if TYPE_CHECKING:
    from tonnage.cache.entry import Entry
    from tonnage.cache.root import Cache


class EntryUsage(msgspec.Struct, frozen=True, kw_only=True):
    """One row of ``tonnage ls``.

    ``bytes`` and ``files`` are what lies there, published or not. Times are Unix times in seconds, 0 when unknown;
    ``last_used`` is when somebody last took the entry into use, not when that ended. ``in_use`` says whether the
    entry is held or being loaded; ``holders`` are those who can be seen from here, maybe none. ``problem`` says why an
    entry is damaged.
    """

    name: str
    path: str
    state: State
    bytes: int
    files: int
    revision: str = ""
    layout: str = ""
    verified: str = ""
    created: float = 0.0
    last_used: float = 0.0
    in_use: bool = False
    holders: tuple[Holder, ...] = ()
    problem: str = ""


def usage(entry: Entry) -> EntryUsage:
    """Returns what is known of an entry. Doesn't raise for a damaged one."""
    finding = entry.look()
    sizes = _sizes(entry)
    seen = tuple(_seen(entry))
    manifest = finding.manifest
    return EntryUsage(
        name=entry.name,
        path=str(entry.model),
        state=finding.state,
        bytes=sum(sizes),
        files=len(sizes),
        revision=manifest.revision if manifest else "",
        layout=manifest.layout if manifest else "",
        verified=manifest.verified if manifest else "",
        created=manifest.created if manifest else 0.0,
        last_used=_last_used(entry),
        in_use=bool(seen) or _held_unseen(entry),
        holders=seen,
        problem=finding.problem,
    )


def cache_usage(cache: Cache) -> list[EntryUsage]:
    """Returns the rows of ``tonnage ls``, by name.

    Raises:
        CacheNotWritable: The cache folder is there but can't be read.
    """
    return [usage(entry) for entry in cache.entries()]


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
    using = entry.try_exclusive()
    if using is None:
        raise CacheInUse(f"{entry.name} is in use by {describe_holders(holders(entry.use_path))}.")
    with using:
        loading = entry.try_load_lock()
        if loading is None:
            raise CacheInUse(f"{entry.name} is being loaded by {describe_holders(holders(entry.load_path))}.")
        with loading:
            return entry.clear()


def _sizes(entry: Entry) -> list[int]:
    sizes: list[int] = []
    for folder in (entry.model, entry.partial):
        try:
            sizes.extend(files_below(folder).values())
        except CacheDamaged:  # a row for it all the same
            continue
    return sizes


def _seen(entry: Entry) -> list[Holder]:
    both = {holder.pid: holder for path in (entry.load_path, entry.use_path) for holder in holders(path)}
    return [both[pid] for pid in sorted(both)]


def _last_used(entry: Entry) -> float:
    try:
        return entry.use_path.stat().st_mtime
    except OSError:
        return 0.0


def _held_unseen(entry: Entry) -> bool:
    """Tries the lock, for holders in other containers can't be seen. Who comes in that moment, waits 2 ms."""
    if not entry.use_path.exists():
        return False
    lock = entry.try_exclusive()
    if lock is None:
        return True
    lock.release()
    return False
