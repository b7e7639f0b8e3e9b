"""What a cache lies on, and whether a load fits there."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from tonnage.cache.cgroups import memory_limit
from tonnage.cache.procfs import PROC, Mount, find_mount
from tonnage.contract import Medium
from tonnage.contract.sizes import human_bytes
from tonnage.errors import InsufficientSpace

MEMORY_FILESYSTEMS = frozenset({"tmpfs", "ramfs", "hugetlbfs"})
"""Filesystems whose files are memory: nothing to fsync, and pages are charged to whoever writes them."""

_SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def inspect_medium(path: Path) -> Medium:
    """Returns what ``path`` lies on. Where it doesn't exist yet, its nearest parent that does is asked.

    Sizes are 0 where the filesystem states none (a tmpfs without ``size=``).

    Raises:
        OSError: No parent can be looked at.
    """
    existing_path = nearest_existing_path(path)
    mount = find_mount(existing_path)
    space = os.statvfs(existing_path)
    filesystem = mount.filesystem if mount else ""
    return Medium(
        filesystem=filesystem,
        pages=page_kind(mount, shmem_enabled=_read(_SHMEM_ENABLED)) if mount else "",
        capacity_bytes=space.f_blocks * space.f_frsize,
        free_bytes=space.f_bavail * space.f_frsize,
    )


def page_kind(mount: Mount, *, shmem_enabled: str = "") -> str:
    """Returns ``4k``, or how a tmpfs uses huge pages; empty for other filesystems.

    Args:
        mount: Where the cache lies.
        shmem_enabled: The kernel's setting of that name, whose ``deny`` and ``force`` overrule every mount
            (``Documentation/admin-guide/mm/transhuge.rst``).
    """
    if mount.filesystem != "tmpfs":
        return ""
    if "[deny]" in shmem_enabled:
        return "4k"
    if "[force]" in shmem_enabled:
        return "always"
    option = next((item.removeprefix("huge=") for item in mount.super_options if item.startswith("huge=")), "never")
    return "4k" if option == "never" else option


def in_memory(path: Path) -> bool:
    """Says whether files at ``path`` are memory rather than on a disk. Doubt counts as a disk."""
    try:
        mount = find_mount(nearest_existing_path(path))
    except OSError:
        return False
    return mount is not None and mount.filesystem in MEMORY_FILESYSTEMS


def check_free_space(path: Path, required_bytes: int, *, min_free: int = 0) -> None:
    """Refuses a load that can't fit, before its first byte.

    Args:
        path: Where the bytes go; needn't exist yet.
        required_bytes: Bytes that are still to be written.
        min_free: Bytes that must stay free beside them.

    Raises:
        InsufficientSpace: The medium has less room, or ``path`` is memory and this process's limit, or the machine, is
            smaller than ``required_bytes``.
    """
    medium = inspect_medium(path)
    refusal = insufficient_space_message(
        path,
        medium,
        required_bytes,
        min_free=min_free,
        limit=memory_limit() if medium.filesystem in MEMORY_FILESYSTEMS else None,
        machine=machine_memory() if medium.filesystem in MEMORY_FILESYSTEMS else None,
    )
    if refusal:
        raise InsufficientSpace(refusal)


def insufficient_space_message(
    path: Path,
    medium: Medium,
    required_bytes: int,
    *,
    min_free: int = 0,
    limit: int | None = None,
    machine: int | None = None,
) -> str:
    """Returns why ``required_bytes`` bytes don't fit, as a sentence; empty when they do. See ``check_room``."""
    exact_bytes = functools.partial(human_bytes, style="exact")
    if limit is not None and required_bytes > limit:
        return (
            f"{path} is memory ({medium.filesystem}), and {exact_bytes(required_bytes)} are to be written there, but "
            f"the "
            f"memory limit of this process is {exact_bytes(limit)}: pages of a memory cache count against whoever "
            "writes them."
        )
    if machine is not None and required_bytes > machine:
        return (
            f"{path} is memory ({medium.filesystem}), and {exact_bytes(required_bytes)} are to be written there, but "
            f"this "
            f"machine has only {exact_bytes(machine)} of memory and swap."
        )
    if medium.capacity_bytes and required_bytes + min_free > medium.free_bytes:
        kept = f" and {exact_bytes(min_free)} kept free" if min_free else ""
        return (
            f"{path} has not enough room: {exact_bytes(required_bytes)} needed{kept}, "
            f"{exact_bytes(medium.free_bytes)} free of "
            f"{exact_bytes(medium.capacity_bytes)} ({medium.filesystem or 'unknown filesystem'})."
        )
    return ""


def machine_memory(proc: Path = PROC) -> int | None:
    """Returns the bytes of memory and swap of this machine, or None where procfs doesn't say."""
    found = dict(re.findall(r"^(MemTotal|SwapTotal):\s+(\d+) kB$", _read(proc / "meminfo"), re.MULTILINE))
    return sum(int(kib) << 10 for kib in found.values()) if "MemTotal" in found else None


def nearest_existing_path(path: Path) -> Path:
    """Returns ``path``, or the nearest of its parents that exists as far as this user may see."""
    place = path.absolute()
    while not _path_exists(place) and place != place.parent:
        place = place.parent
    return place


def _path_exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
