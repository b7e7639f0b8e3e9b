"""Inspects the medium of a cache, and checks whether a load fits on it."""

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
"""Memory-backed filesystems. They need no fsync, and their pages are charged to the process that writes them."""

BY_ADVICE = "advise"
"""The kind of pages of a tmpfs that gives huge pages to mappings that ask for them, and not to ``write``."""

_SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def inspect_medium(path: Path) -> Medium:
    """Returns the medium of ``path``, or of its nearest existing parent.

    Sizes are 0 if the filesystem has no limit (a tmpfs without ``size=``).

    Raises:
        OSError: No parent can be accessed.
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
    """Returns ``4k`` or the huge page policy of a tmpfs; empty for other filesystems.

    Args:
        mount: The mount of the cache.
        shmem_enabled: The kernel's setting of that name, whose ``deny`` and ``force`` override the mounts' options
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
    """Returns whether ``path`` is memory-backed. If it can't be determined, it counts as a disk."""
    try:
        mount = find_mount(nearest_existing_path(path))
    except OSError:
        return False
    return mount is not None and mount.filesystem in MEMORY_FILESYSTEMS


def check_free_space(path: Path, required_bytes: int, *, min_free: int = 0, claimed: int = 0) -> None:
    """Checks before a load that it fits.

    Args:
        path: Where the files go; need not exist yet.
        required_bytes: Bytes still to be written.
        min_free: Bytes that must remain free.
        claimed: Bytes that other loads have still to write.

    Raises:
        InsufficientSpace: The medium has too little free space, or ``path`` is memory-backed and ``required_bytes``
            exceeds this process's memory limit or the machine's memory and swap.
    """
    medium = inspect_medium(path)
    refusal = insufficient_space_message(
        path,
        medium,
        required_bytes,
        min_free=min_free,
        claimed=claimed,
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
    claimed: int = 0,
    limit: int | None = None,
    machine: int | None = None,
) -> str:
    """Returns why ``required_bytes`` don't fit, as a sentence; empty if they do. See ``check_free_space``."""
    exact_bytes = functools.partial(human_bytes, style="exact")
    if limit is not None and required_bytes > limit:
        return (
            f"{path} is memory-backed ({medium.filesystem}). Writing {exact_bytes(required_bytes)} would exceed this "
            f"process's memory limit of {exact_bytes(limit)}: pages are charged to the process that writes them."
        )
    if machine is not None and required_bytes > machine:
        return (
            f"{path} is memory-backed ({medium.filesystem}). Writing {exact_bytes(required_bytes)} would exceed the "
            f"{exact_bytes(machine)} of memory and swap of this machine."
        )
    if medium.capacity_bytes and required_bytes + min_free + claimed > medium.free_bytes:
        others = f", {exact_bytes(claimed)} claimed by other loads" if claimed else ""
        reserve = f", {exact_bytes(min_free)} must remain free" if min_free else ""
        return (
            f"{path} has not enough space: {exact_bytes(required_bytes)} needed{reserve}{others}, "
            f"{exact_bytes(medium.free_bytes)} free of "
            f"{exact_bytes(medium.capacity_bytes)} ({medium.filesystem or 'unknown filesystem'})."
        )
    return ""


def machine_memory(proc: Path = PROC) -> int | None:
    """Returns the bytes of memory and swap of this machine, or None if procfs is unavailable."""
    found = dict(re.findall(r"^(MemTotal|SwapTotal):\s+(\d+) kB$", _read(proc / "meminfo"), re.MULTILINE))
    return sum(int(kib) << 10 for kib in found.values()) if "MemTotal" in found else None


def nearest_existing_path(path: Path) -> Path:
    """Returns ``path``, or its nearest parent that exists and is visible to this user."""
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
