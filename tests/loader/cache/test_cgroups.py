"""Memory and CPU limits of this process, read from files as the kernel writes them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tonnage.cache import memory_limit
from tonnage.cache.cgroups import CPU, MEMORY, limit_files, parse_limit, usable_cores
from tonnage.cache.procfs import Mount

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30
CORES = len(os.sched_getaffinity(0))


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """Creates a procfs and cgroups: version 2 at ``cg``, the CPU controller of version 1 at ``cpu``."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(
        f"1 0 0:1 / {root}/cg rw - cgroup2 cgroup2 rw\n2 0 0:2 / {root}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    )
    return root / "proc"


V1 = Mount(1, "0:29", "/", "/sys/fs/cgroup/memory", "cgroup", ("rw", "memory"))
V2 = Mount(2, "0:30", "/", "/sys/fs/cgroup", "cgroup2", ("rw",))


def names(cgroup: str, *mounts: Mount) -> list[str]:
    return [str(path) for path in limit_files(MEMORY, cgroup, mounts)]


def test_limits_of_version_2_are_those_of_the_group_and_its_parents() -> None:
    assert names("0::/kube/pod/app\n", V2) == [
        "/sys/fs/cgroup/kube/pod/app/memory.max",
        "/sys/fs/cgroup/kube/pod/memory.max",
        "/sys/fs/cgroup/kube/memory.max",
        "/sys/fs/cgroup/memory.max",
    ]


def test_limits_of_version_1_are_those_of_the_memory_controller() -> None:
    cgroup = "9:cpu,cpuacct:/other\n4:memory:/docker/abc\n0::/\n"
    assert names(cgroup, V1) == [
        "/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/docker/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]


def test_inside_a_container_the_group_is_at_the_root_of_the_mount() -> None:
    mounted = V1._replace(root="/docker/abc")
    assert names("4:memory:/docker/abc\n", mounted) == ["/sys/fs/cgroup/memory/memory.limit_in_bytes"]
    assert names("0::/../../elsewhere\n", V2._replace(root="/x")) == ["/sys/fs/cgroup/memory.max"]


def test_other_controllers_and_garbage_have_no_limits() -> None:
    assert names("4:memory:/a\n", V1._replace(super_options=("rw", "cpu"))) == []
    assert names("garbage\n\n1:\n", V1, V2) == []


@pytest.mark.parametrize(
    ("text", "limit"),
    [("max\n", None), ("9223372036854771712\n", None), ("2147483648\n", 2 * GIB), ("0", 0), ("", None), ("-1", None)],
)
def test_a_limit_file_is_read(text: str, limit: int | None) -> None:
    assert parse_limit(text) == limit


def test_the_smallest_limit_of_all_parents_applies(tmp_path: Path) -> None:
    limits = {"cg/pod/app/memory.max": "max\n", "cg/pod/memory.max": "4096\n", "cg/memory.max": "8192\n"}
    assert memory_limit(machine(tmp_path, "0::/pod/app\n", limits)) == 4096
    assert memory_limit(tmp_path / "no") is None


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/\n", {}, CORES),
        ("0::/\n", {"cg/cpu.max": "max 100000\n"}, CORES),
        ("0::/\n", {"cg/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"cg/a/cpu.max": "100000 100000\n"}, 1),
        ("0::/a\n", {"cg/a/cpu.max": "9900000 100000\n"}, CORES),
        ("0::/a\n", {"cg/a/cpu.max": "50000 100000\n"}, 1),
        ("0::/a\n", {"cg/a/cpu.max": "gibberish\n"}, CORES),
        (
            "4:cpu,cpuacct:/pod\n1:memory:/pod\n",
            {"cpu/pod/cpu.cfs_quota_us": "100000\n", "cpu/pod/cpu.cfs_period_us": "100000\n"},
            1,
        ),
        (
            "4:cpu:/pod\n",
            {"cpu/pod/cpu.cfs_quota_us": "-1\n", "cpu/pod/cpu.cfs_period_us": "100000\n"},
            CORES,
        ),
        ("garbage", {}, CORES),
    ],
)
def test_cores_are_the_minimum_of_affinity_and_quota(
    tmp_path: Path, cgroup: str, files: dict[str, str], cores: float
) -> None:
    assert usable_cores(machine(tmp_path, cgroup, files)) == min(cores, CORES)


def test_without_a_procfs_the_affinity_decides(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == CORES


def test_a_container_that_sees_the_hosts_group_uses_the_root_of_its_mount() -> None:
    mounted = Mount(2, "0:2", "/docker/abc", "/sys/fs/cgroup/cpu", "cgroup", ("rw", "cpu"))
    assert [str(path) for path in limit_files(CPU, "4:cpu:/docker/abc\n", [mounted])] == [
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"
    ]
