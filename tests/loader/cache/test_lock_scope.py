"""Which file systems share locks among all who can access them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.cache_entries import ENTRY_NAME
from tonnage.cache import Cache
from tonnage.cache.lock_scope import excludes_all_others, shares_locks
from tonnage.cache.procfs import Mount

if TYPE_CHECKING:
    from pathlib import Path


def mount(filesystem: str, *options: str) -> Mount:
    return Mount(1, "0:1", "/", "/cache", filesystem, ("rw", *options))


@pytest.mark.parametrize(
    "found",
    [
        *map(mount, ("tmpfs", "ext4", "xfs", "btrfs", "zfs", "overlay", "ceph")),
        mount("nfs4", "local_lock=none"),
        mount("nfs", "vers=3", "local_lock=none"),
        mount("nfs4", "local_lock=posix"),
        mount("lustre", "flock"),
    ],
)
def test_these_share_locks(found: Mount) -> None:
    assert shares_locks(found)


@pytest.mark.parametrize(
    "found",
    [
        *map(mount, ("gpfs", "beegfs", "9p", "virtiofs", "fuse.sshfs", "cifs", "unknown", "lustre")),
        mount("nfs", "nolock", "local_lock=all"),
        mount("nfs4", "local_lock=flock"),
        mount("lustre", "localflock"),
        None,
    ],
)
def test_these_may_not(found: Mount | None) -> None:
    assert not shares_locks(found)


def test_a_lock_that_is_held_here_keeps_all_others_out(root: Path) -> None:
    entry = Cache(root).entry(ENTRY_NAME)
    entry.create()
    with entry.acquire_load_lock() as lock:
        assert lock.is_refused_to_others()
        assert excludes_all_others(lock)
    with entry.acquire_use_lock() as shared:
        assert shared.is_refused_to_others()
