"""Inspects processes of containers. The tests run on the node itself."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path

_PROC = Path("/proc")


def container_pids(container_id: str) -> list[int]:
    """Returns the PIDs of a container, the oldest first.

    Args:
        container_id: As in a pod's status: ``containerd://…``.
    """
    identity = container_id.rpartition("/")[2]
    found = []
    for folder in _PROC.iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                if identity and identity in (folder / "cgroup").read_text():
                    found.append(int(folder.name))
    return sorted(found, key=lambda pid: (start_time(pid), pid))


def start_time(pid: int) -> float:
    """Returns the start time of a process in seconds since boot (0.01 s resolution); infinity if it has exited."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("inf")
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int, kind: str) -> int:
    """Returns a field of a process's ``smaps_rollup``, in bytes."""
    for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(kind)


def kill(pid: int) -> None:
    """Kills a process (SIGKILL). It may have exited already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_for_exit(pid: int, *, timeout: float) -> float:
    """Waits until a process exits and returns the seconds that this took."""
    started = time.monotonic()
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0.0
    try:
        ready, _, _ = select.select([pidfd], [], [], timeout)
    finally:
        os.close(pidfd)
    assert ready, f"process {pid} still runs after {timeout} s"
    return time.monotonic() - started
