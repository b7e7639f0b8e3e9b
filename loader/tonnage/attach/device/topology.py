"""Cores near a PCI device."""

from __future__ import annotations

import os
from pathlib import Path

SYS = Path("/sys")


def parse_cpu_list(text: str) -> set[int]:
    """Returns the numbers in a kernel list such as ``0-3,8``; empty for what isn't one."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            return set()
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def numa_local_cpus(bus_id: str, *, sys: Path = SYS) -> set[int]:
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
        local = parse_cpu_list((folder / "local_cpulist").read_text())
    except (OSError, ValueError):
        return set()
    allowed = os.sched_getaffinity(0)
    return local & allowed if local & allowed != allowed else set()
