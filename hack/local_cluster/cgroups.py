"""The control group of a cluster's pods, below the root of each hierarchy (cgroup v1, v2 or both)."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from local_cluster.errors import StartFailed

_REQUIRED_CONTROLLERS = ("cpu", "cpuset", "memory", "pids")
_REMOVE_TIMEOUT = 15.0


def hierarchies(mountinfo: str) -> list[tuple[Path, str]]:
    """Returns mount point and type (``cgroup`` or ``cgroup2``) of each hierarchy, from the text of a mountinfo file."""
    found: dict[Path, str] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind = after.split(" ", 1)[0]
        if kind in {"cgroup", "cgroup2"}:
            found.setdefault(Path(before.split(" ")[4]), kind)
    return list(found.items())


def missing_controllers(mountinfo: str) -> list[str]:
    """Returns the controllers that pods need and this machine doesn't have."""
    offered: set[str] = set()
    for path, kind in hierarchies(mountinfo):
        if kind == "cgroup2":
            with contextlib.suppress(OSError):
                offered |= set((path / "cgroup.controllers").read_text().split())
        else:
            offered |= set(path.name.split(","))
    return [name for name in _REQUIRED_CONTROLLERS if name not in offered]


def exists(name: str) -> bool:
    """Whether any hierarchy has a cluster's group."""
    return any((path / name).exists() for path, _ in hierarchies(_mountinfo()))


def create(name: str) -> None:
    """Creates a cluster's group in each hierarchy.

    Raises:
        StartFailed: The kernel refused.
    """
    for path, kind in hierarchies(_mountinfo()):
        group = path / name
        try:
            if kind == "cgroup2":
                _enable_controllers(path)
            group.mkdir(exist_ok=True)
            # In cgroup v1 a new group has empty cpuset.cpus and cpuset.mems until they are written.
            for file in ("cpuset.cpus", "cpuset.mems"):
                if kind == "cgroup" and (group / file).exists():
                    (group / file).write_text((path / file).read_text())
        except OSError as error:
            raise StartFailed(f"Can't create the control group {group}: {error.strerror}.") from error


def remove(name: str) -> None:
    """Removes a cluster's groups. Their processes must be exiting.

    Raises:
        StartFailed: A group still has a process after 15 seconds.
    """
    deadline = time.monotonic() + _REMOVE_TIMEOUT
    for path, _ in hierarchies(_mountinfo()):
        group = path / name
        while group.exists():
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
            if not group.exists():
                break
            if time.monotonic() > deadline:
                raise StartFailed(f"The control group {group} is still in use.")
            time.sleep(0.05)  # the kernel has no event for an empty group of cgroup v1


def _enable_controllers(root: Path) -> None:
    """Enables the root's controllers for the groups below it (cgroup v2)."""
    for name in (root / "cgroup.controllers").read_text().split():
        if name in (*_REQUIRED_CONTROLLERS, "hugetlb", "io"):
            (root / "cgroup.subtree_control").write_text(f"+{name}")


def _mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text()
