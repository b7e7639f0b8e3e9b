"""Describes the machine on which results were measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "instanttensor",
    "fastsafetensors",
    "tensorizer",
    "runai-model-streamer",
    "safetensors",
    "numpy",
    "msgspec",
)


def collect_host_info() -> dict[str, Any]:
    """Returns hardware, kernel, page settings, and versions of all libraries that are compared."""
    return {
        "cpu": _line("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "memory": _line("/proc/meminfo", "MemTotal"),
        "shmem_enabled": _text("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        "thp_enabled": _text("/sys/kernel/mm/transparent_hugepage/enabled"),
        "multi_generational_lru": _text("/sys/kernel/mm/lru_gen/enabled") or "none",
        "numa_nodes": {
            path.name: _text(path / "cpulist") for path in sorted(Path("/sys/devices/system/node").glob("node[0-9]*"))
        },
        "memory_counters": sorted(path.name for path in Path("/sys/bus/event_source/devices").glob("*imc*")),
        "gpus": _nvidia("name,memory.total,driver_version,pcie.link.gen.current,pcie.link.width.current,pci.bus_id"),
        "topology": _nvidia_topology(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def huge_pages_in_use() -> int:
    """Returns the bytes of shared memory in huge pages."""
    fields = _line("/proc/meminfo", "ShmemHugePages").split()
    return int(fields[0]) * 1024 if fields else 0


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _line(path: str, key: str) -> str:
    for line in _text(path).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _nvidia(fields: str) -> list[str]:
    return _output(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]).splitlines()


def _nvidia_topology() -> str:
    return _output(["nvidia-smi", "topo", "-m"])


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
