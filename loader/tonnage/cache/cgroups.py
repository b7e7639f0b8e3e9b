"""The memory limit that the kernel puts on this process, by control groups of version 1 and 2."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tonnage.cache.mounts import PROC, Mount, read_mounts

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNLIMITED_V1 = 1 << 62
"""Version 1 says "no limit" as the largest page-aligned signed number; nothing real comes near."""


def limit_files(cgroup: str, mounts: Iterable[Mount]) -> list[Path]:
    """Returns the files whose smallest number is the limit: of the process's group and of all groups above it.

    Args:
        cgroup: The text of ``/proc/self/cgroup``.
        mounts: The mounts that the process sees. A group that lies outside of what is mounted (a container whose
            procfs shows the host's path) is looked for at the top of the mount.
    """
    groups = _memory_groups(cgroup)
    files: list[Path] = []
    for mount in mounts:
        if mount.filesystem == "cgroup2":
            group, name = groups.get(""), "memory.max"
        elif mount.filesystem == "cgroup" and "memory" in mount.options:
            group, name = groups.get("memory"), "memory.limit_in_bytes"
        else:
            continue
        if group is None:
            continue
        root = PurePosixPath(mount.root)
        path = PurePosixPath(group)
        below = path.relative_to(root) if path.is_relative_to(root) else PurePosixPath()
        top = Path(mount.point)
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
    try:
        cgroup = (proc / "self/cgroup").read_text()
    except OSError:
        return None
    limits = []
    for file in limit_files(cgroup, read_mounts(proc)):
        try:
            limits.append(parse_limit(file.read_text()))
        except OSError:
            continue
    return min((limit for limit in limits if limit is not None), default=None)


def _memory_groups(cgroup: str) -> dict[str, str]:
    """Maps ``memory`` (version 1) and the empty name (version 2) to the process's group."""
    groups = {}
    for line in cgroup.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if group.startswith("/"):
            groups.update(dict.fromkeys(controllers.split(","), group))
    return groups
