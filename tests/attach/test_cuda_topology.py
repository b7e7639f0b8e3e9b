"""Cores on a device's NUMA node, read from sysfs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tonnage.attach.device.cuda import numa_local_cpus, parse_cpu_list

if TYPE_CHECKING:
    from pathlib import Path

CORES = len(os.sched_getaffinity(0))


def tree(root: Path, files: dict[str, str]) -> dict[str, Path]:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return {"proc": root / "proc", "sys": root / "sys"}


def test_cpu_lists_are_parsed() -> None:
    assert parse_cpu_list("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert parse_cpu_list("\n") == set()
    assert parse_cpu_list("a-b") == set()


def test_if_all_cores_are_local_or_the_node_is_unknown_none_are_returned(tmp_path: Path) -> None:
    folder = "sys/bus/pci/devices/0000:1b:00.0"
    mine = ",".join(map(str, os.sched_getaffinity(0)))
    sys = tree(tmp_path, {f"{folder}/numa_node": "0\n", f"{folder}/local_cpulist": mine})["sys"]
    assert numa_local_cpus("0000:1B:00.0", sys=sys) == set()
    tree(tmp_path, {f"{folder}/numa_node": "-1\n"})
    assert numa_local_cpus("0000:1B:00.0", sys=sys) == set()
    assert numa_local_cpus("0000:ff:00.0", sys=sys) == set()


@pytest.mark.skipif(CORES < 2, reason="needs two cores")
def test_local_cores_are_those_of_the_node_that_this_process_may_use(tmp_path: Path) -> None:
    first = min(os.sched_getaffinity(0))
    folder = "sys/bus/pci/devices/0000:1b:00.0"
    sys = tree(tmp_path, {f"{folder}/numa_node": "0\n", f"{folder}/local_cpulist": f"{first},4000"})["sys"]
    assert numa_local_cpus("0000:1B:00.0", sys=sys) == {first}
