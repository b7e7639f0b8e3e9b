"""Finds the programs of a cluster: in KUBEBUILDER_ASSETS, on this machine, or built from Go modules into a cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from local_cluster.errors import MissingRequirements, StartFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "hack" / "kubernetes" / "build.sh"
CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
NODE = ("kubelet", "kube-proxy", "coredns", "pause", "logging-proxy")
CLIENTS = ("helm",)

_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_CNI_FOLDERS = ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni")
_EXIT_NO_GO = 3
"""The exit code of build.sh if there is no suitable Go."""


def find_or_build(names: Sequence[str]) -> dict[str, Path]:
    """Returns the path of each program. Builds missing ones, which takes minutes the first time.

    Raises:
        MissingRequirements: A program has to be built and there is no suitable Go.
        StartFailed: A build failed; its output went to stderr.
    """
    assets = _assets()
    found = {name: assets / name for name in names if (assets / name).exists()}
    if missing := [name for name in names if name not in found]:
        done = subprocess.run([SCRIPT, *missing], check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode == _EXIT_NO_GO:
            raise MissingRequirements([missing_go(missing)])
        if done.returncode:
            raise StartFailed(f"hack/kubernetes/build.sh exited with {done.returncode}.")
        folder = Path(done.stdout.strip())
        found |= {name: folder / name for name in missing}
    return found


def missing_programs(names: Sequence[str]) -> list[str]:
    """Returns the programs that have to be built first."""
    done = subprocess.run([SCRIPT, "--missing", *names], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()


def has_go() -> bool:
    """Whether this machine has a Go that can build the programs."""
    return subprocess.run([SCRIPT, "--has-go"], check=False, capture_output=True).returncode == 0


def missing_go(missing: Sequence[str]) -> tuple[str, str]:
    """Returns the missing requirement, and its remedy, if there is no Go for the programs to build."""
    remedy = (
        "Install it from https://go.dev/dl, on PATH or in /usr/local/go, "
        "or set KUBEBUILDER_ASSETS to a folder with these programs"
    )
    return f"Go 1.24 or newer, to build {', '.join(missing)}", f"{remedy}."


def find_on_host(name: str) -> Path | None:
    """Returns the path of a program in KUBEBUILDER_ASSETS, this Python's environment or the system; None if missing."""
    for folder in (_assets(), Path(sys.executable).parent):
        if os.access(folder / name, os.X_OK):
            return folder / name
    found = shutil.which(name, path=search_path())
    return Path(found) if found else None


def find_cni_plugins() -> Path | None:
    """Returns the folder of the CNI plugins; None if missing."""
    return next((Path(folder) for folder in _CNI_FOLDERS if os.access(f"{folder}/ptp", os.X_OK)), None)


def search_path() -> str:
    """Returns PATH with the folders of system programs, which are often not in a user's PATH."""
    own = os.environ.get("PATH", "").split(":")
    return ":".join(dict.fromkeys(folder for folder in (*own, *_SYSTEM_FOLDERS) if folder))


def _assets() -> Path:
    return Path(os.environ.get("KUBEBUILDER_ASSETS") or "/nonexistent")
