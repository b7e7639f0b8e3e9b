"""What this process may use of the machine: cores, and those near a PCI device."""

from __future__ import annotations

import math
import os
from pathlib import Path

PROC = Path("/proc")
SYS = Path("/sys")


def usable_cores(*, proc: Path = PROC, sys: Path = SYS) -> int:
    """Returns how many cores this process may keep busy: its affinity, and the quota of its control groups.

    At least 1. A quota of 3.5 cores counts as 3: more threads than cores make a copy slower, not faster.
    """
    quota = _cpu_quota(proc, sys)
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, math.floor(quota)) if quota is not None else cores)


def _cpu_quota(proc: Path, sys: Path) -> float | None:
    quotas = [quota for file in _quota_files(proc, sys) if (quota := _read_quota(file)) is not None]
    return min(quotas, default=None)


def _quota_files(proc: Path, sys: Path) -> list[Path]:
    """All files that may hold a limit for this process: its own group's and those of the groups above."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    files: list[Path] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:
            root, name = sys / "fs/cgroup", "cpu.max"
        elif "cpu" in controllers.split(","):
            root, name = sys / "fs/cgroup/cpu", "cpu.cfs_quota_us"
        else:
            continue
        folder = root / group.strip("/")
        files += [folder / name, *(parent / name for parent in folder.parents if parent.is_relative_to(root))]
    return files


def _read_quota(file: Path) -> float | None:
    """Cores that a limit file grants; None without a limit or without the file."""
    try:
        words = file.read_text().split()
        if file.name == "cpu.cfs_quota_us":
            words.append(file.with_name("cpu.cfs_period_us").read_text().strip())
        quota, period = (float(word) for word in words)
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def parse_cpu_list(text: str) -> set[int]:
    """Returns the numbers in a kernel list such as ``0-3,8``; empty for what isn't one."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            return set()
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def cores_near(bus_id: str, *, sys: Path = SYS) -> set[int]:
    """Returns the cores on the memory node of a PCI device that this process may use.

    Empty where the machine has one node, or doesn't say.

    Args:
        bus_id: As the driver spells it, for example ``0000:1B:00.0``.
        sys: Where sysfs is.
    """
    folder = sys / "bus/pci/devices" / bus_id.lower()
    try:
        if int((folder / "numa_node").read_text()) < 0:
            return set()
        near = parse_cpu_list((folder / "local_cpulist").read_text())
    except (OSError, ValueError):
        return set()
    mine = os.sched_getaffinity(0)
    return near & mine if near & mine != mine else set()
