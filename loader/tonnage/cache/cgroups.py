"""Memory and CPU limits of this process, from cgroup v1 and v2."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from tonnage.cache.procfs import PROC, Mount, read_mounts

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNLIMITED_V1 = 1 << 62
"""Version 1 represents "no limit" by the largest page-aligned signed number; real limits are far below."""


class CgroupController(NamedTuple):
    """A cgroup controller and the files with its limit. In version 1 each controller has its own mount."""

    name: str
    file_v1: str
    file_v2: str


MEMORY = CgroupController("memory", "memory.limit_in_bytes", "memory.max")
CPU = CgroupController("cpu", "cpu.cfs_quota_us", "cpu.max")


def limit_files(controller: CgroupController, cgroup: str, mounts: Iterable[Mount]) -> list[Path]:
    """Returns the limit files of the process's cgroup and of all its parents. The smallest value applies.

    Args:
        controller: The controller.
        cgroup: The text of ``/proc/self/cgroup``.
        mounts: The mounts of the process. If the cgroup is outside of the mount (in a container whose procfs shows
            the host's path), the root of the mount is used.
    """
    groups = _groups(cgroup)
    files: list[Path] = []
    for mount in mounts:
        if mount.filesystem == "cgroup2":
            group, name = groups.get(""), controller.file_v2
        elif mount.filesystem == "cgroup" and controller.name in mount.super_options:
            group, name = groups.get(controller.name), controller.file_v1
        else:
            continue
        if group is None:
            continue
        root = PurePosixPath(mount.root)
        path = PurePosixPath(group)
        below = path.relative_to(root) if path.is_relative_to(root) else PurePosixPath()
        top = Path(mount.mount_point)
        files.extend(top / folder / name for folder in (below, *below.parents))
    return list(dict.fromkeys(files))


def parse_limit(text: str) -> int | None:
    """Returns the limit in bytes, or None for "no limit" and for text that isn't a number."""
    word = text.strip()
    if not word.isdecimal():
        return None
    limit = int(word)
    return limit if limit < _UNLIMITED_V1 else None


def memory_limit(proc: Path = PROC) -> int | None:
    """Returns the memory limit in bytes that this process shares with its cgroup.

    None if there is no limit or it can't be read.
    """
    limits = []
    for file in _files(MEMORY, proc):
        try:
            limits.append(parse_limit(file.read_text()))
        except OSError:
            continue
    return min((limit for limit in limits if limit is not None), default=None)


def usable_cores(proc: Path = PROC) -> float:
    """Returns how many CPUs this process may use: the lower of its affinity and its cgroups' quotas.

    At least 1. A quota may be a fraction, such as 3.5.
    """
    quotas = [quota for file in _files(CPU, proc) if (quota := _read_quota(file)) is not None]
    return max(1.0, min([float(len(os.sched_getaffinity(0))), *quotas]))


def _files(controller: CgroupController, proc: Path) -> list[Path]:
    try:
        cgroup = (proc / "self/cgroup").read_text()
    except OSError:
        return []
    return limit_files(controller, cgroup, read_mounts(proc))


def _read_quota(file: Path) -> float | None:
    """Returns the CPUs that a file allows; None if it is missing or sets no limit."""
    try:
        words = file.read_text().split()
        if file.name == CPU.file_v1:
            words.append(file.with_name("cpu.cfs_period_us").read_text().strip())
        quota, period = (float(word) for word in words)
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def _groups(cgroup: str) -> dict[str, str]:
    """Maps each controller of version 1, and the empty string for version 2, to the process's cgroup."""
    groups = {}
    for line in cgroup.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if group.startswith("/"):
            groups.update(dict.fromkeys(controllers.split(","), group))
    return groups
