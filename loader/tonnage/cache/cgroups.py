"""What the kernel allows this process, by control groups of version 1 and 2: memory, and processors."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from tonnage.cache.procfs import PROC, Mount, read_mounts

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNLIMITED_V1 = 1 << 62
"""Version 1 says "no limit" as the largest page-aligned signed number; nothing real comes near."""


class CgroupController(NamedTuple):
    """One kind of limit and the files that state it: below a mount of its own in version 1, below the one in 2."""

    name: str
    file_v1: str
    file_v2: str


MEMORY = CgroupController("memory", "memory.limit_in_bytes", "memory.max")
CPU = CgroupController("cpu", "cpu.cfs_quota_us", "cpu.max")


def limit_files(controller: CgroupController, cgroup: str, mounts: Iterable[Mount]) -> list[Path]:
    """Returns the files whose smallest number is the limit: of the process's group and of all groups above it.

    Args:
        controller: Which limit.
        cgroup: The text of ``/proc/self/cgroup``.
        mounts: The mounts that the process sees. A group that lies outside of what is mounted (a container whose
            procfs shows the host's path) is looked for at the top of the mount.
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
    """Returns the bytes that a limit file states, or None for "no limit" and for what isn't a number."""
    word = text.strip()
    if not word.isdecimal():
        return None
    limit = int(word)
    return limit if limit < _UNLIMITED_V1 else None


def memory_limit(proc: Path = PROC) -> int | None:
    """Returns the bytes of memory that this process may use with all others of its control groups.

    None where there is no limit, or where none can be seen.
    """
    limits = []
    for file in _files(MEMORY, proc):
        try:
            limits.append(parse_limit(file.read_text()))
        except OSError:
            continue
    return min((limit for limit in limits if limit is not None), default=None)


def usable_cores(proc: Path = PROC) -> float:
    """Returns how many processors this process may keep busy: its affinity, and the quotas of its control groups.

    At least 1; a quota may be a broken number, such as 3.5.
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
    """The processors that a file grants; None without a limit or without the file."""
    try:
        words = file.read_text().split()
        if file.name == CPU.file_v1:
            words.append(file.with_name("cpu.cfs_period_us").read_text().strip())
        quota, period = (float(word) for word in words)
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def _groups(cgroup: str) -> dict[str, str]:
    """Maps the names of version 1's controllers, and the empty name of version 2, to the process's group."""
    groups = {}
    for line in cgroup.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if group.startswith("/"):
            groups.update(dict.fromkeys(controllers.split(","), group))
    return groups
