"""Host state that a cluster could leave behind, to compare before and after."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from local_cluster import programs
from local_cluster.process_identity import all_pids, command_line

_PATHS = (
    "/etc/cni",
    "/etc/kubernetes",
    "/opt/cni",
    "/run/containerd",
    "/run/flannel",
    "/run/netns",
    "/run/seaweedfs-s3.sock",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
)
_SYSCTLS = (
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/random/boot_id",
    "net/ipv4/conf/all/forwarding",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/ip_forward",
    "net/netfilter/nf_conntrack_max",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)
_SLOT_NUMBER = re.compile(r"tonnage(?:-cluster-|-local-cluster-)?(\d+)\b")
"""Names that contain the number of a cluster's slot."""
_SEAWEED_PORTS = ("18080", "28080", "28333", "28888", "29333")


def collect_host_state(folder: Path, slot: int | None) -> set[str]:
    """Returns the host state of the cluster in ``folder`` and ``slot``, and state that belongs to no cluster.

    State of other slots is left out, since their clusters may start and stop at any time. ``slot`` None: no slot's.
    """
    found = {
        *_command("ip", "-o", "link"),
        *_command("ip", "-o", "-4", "address"),
        *_command("ip", "route", "show", "table", "all"),
        *_command("iptables-save"),
        *(f"mount {line}" for line in _mounts() if _mentions_cluster(line, folder)),
        *(f"group {path}" for path in _cgroups()),
        *(f"path {path}" for path in _PATHS if os.path.lexists(path)),
        *(
            f"path {path}"
            for path in Path("/tmp").glob("seaweedfs-*")
            if path.name.split("-")[-1][:5] in _SEAWEED_PORTS
        ),
        *(f"lock {line.split()[-1]}" for line in Path("/proc/net/unix").read_text().splitlines() if "@tonnage" in line),
        *(f"sysctl {name} {_sysctl(name)}" for name in _SYSCTLS),
        *(f"process {pid} {' '.join(line)}" for pid, line in _processes() if str(folder) in " ".join(line)),
    }
    return {line for line in found if not (number := _SLOT_NUMBER.search(line)) or int(number[1]) == slot}


def _command(*command: str) -> list[str]:
    path = {"PATH": programs.search_path()}
    lines = subprocess.run(command, check=False, capture_output=True, text=True, env=path).stdout.splitlines()
    # Packet counters and link numbers change at any time.
    return [re.sub(r"^\d+: |\[\d+:\d+\]", "", line) for line in lines if not line.startswith("#")]


def _mounts() -> list[str]:
    return [" ".join(line.split()[3:5]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def _mentions_cluster(line: str, folder: Path) -> bool:
    return str(folder) in line or any(word in line for word in ("kubelet", "containerd", "cni-"))


def _cgroups() -> list[Path]:
    root = Path("/sys/fs/cgroup")
    return [
        path for depth in ("*", "*/*") for path in root.glob(depth) if path.name.startswith(("tonnage", "kubepods"))
    ]


def _processes() -> list[tuple[int, list[str]]]:
    return [(pid, command_line(pid)) for pid in all_pids() if pid != os.getpid()]


def _sysctl(name: str) -> str:
    path = Path("/proc/sys") / name
    return path.read_text().strip() if path.exists() else "-"
