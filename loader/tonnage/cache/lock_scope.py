"""Determines whether a lock keeps all other loaders out: some file systems and sandboxes grant what they don't lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.cache.procfs import find_mount

if TYPE_CHECKING:
    from tonnage.cache.locks import FileLock
    from tonnage.cache.procfs import Mount

LOCAL_FILESYSTEMS = frozenset(
    {
        *("tmpfs", "ramfs", "hugetlbfs"),
        *("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "jfs", "overlay"),
    }
)
"""Filesystems of one kernel, where ``flock`` works. Those of the container sandboxes (9p, virtiofs) are not among
them: a lock in one sandbox is invisible in another."""


def excludes_all_others(lock: FileLock) -> bool:
    """Returns whether a lock that this process holds exclusively keeps out every other process that has the file.

    It does if the lock is refused to a second descriptor of this process, and the file system shares locks among all
    machines that have it. If that is unknown, the answer is False.
    """
    return lock.is_refused_to_others() and shares_locks(_mount(lock))


def shares_locks(mount: Mount | None) -> bool:
    """Returns whether ``flock`` on this mount is seen by all processes that can access the file system.

    NFS forwards it to the server unless it is mounted with ``nolock`` or ``local_lock``, Lustre only with ``flock``.
    GPFS, and BeeGFS as delivered, lock for one machine.
    """
    if mount is None:
        return False
    options = mount.super_options
    match mount.filesystem:
        case "nfs" | "nfs4":
            return "nolock" not in options and not {"local_lock=flock", "local_lock=all"}.intersection(options)
        case "lustre":
            return "flock" in options
        case "ceph":
            return True
    return mount.filesystem in LOCAL_FILESYSTEMS


def _mount(lock: FileLock) -> Mount | None:
    try:
        return find_mount(lock.path)
    except OSError:
        return None
