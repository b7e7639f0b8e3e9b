"""Runs one command, and writes the resources that it and all its descendants used to a JSON file.

It is a separate process, so that RUSAGE_CHILDREN covers exactly one contender. As a subreaper it adopts and counts
orphaned descendants too. The command's output goes to files next to the result.

Usage: measure_process.py RESULT.json COMMAND…
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36

MIN_SAMPLE_INTERVAL = 0.05
"""Minimum seconds between two samples of memory."""

TRAFFIC_INTERVAL = 0.01
"""Seconds between two samples of the loopback device's traffic."""

MAX_SAMPLING_SHARE = 0.01
"""Maximum fraction of one core for sampling memory: for each sample the kernel walks page tables."""


class MemorySampler(threading.Thread):
    """Samples the total proportional set size (PSS) of all descendants, and keeps the peak, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._done = threading.Event()

    def run(self) -> None:
        """Samples until `stop`."""
        pause = MIN_SAMPLE_INTERVAL
        while not self._done.wait(pause):
            began = time.thread_time()
            self.peak = max(self.peak, sum(map(pss, descendants(os.getpid()))))
            pause = max(MIN_SAMPLE_INTERVAL, (time.thread_time() - began) / MAX_SAMPLING_SHARE)

    def stop(self) -> None:
        self._done.set()
        self.join()


class TrafficSampler(threading.Thread):
    """Samples how many bytes the loopback device has received, from the time `began` on."""

    def __init__(self, began: float) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, int]] = []
        self._began = began
        self._before = loopback_bytes()
        self._done = threading.Event()

    def run(self) -> None:
        """Samples until `stop`."""
        while not self._done.wait(TRAFFIC_INTERVAL):
            moment = round(time.monotonic() - self._began, 4)
            self.samples.append((moment, loopback_bytes() - self._before))

    def stop(self) -> None:
        self._done.set()
        self.join()


def loopback_bytes() -> int:
    """Returns the bytes that the loopback device of this network namespace has received."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.lstrip().startswith("lo:"))


def descendants(pid: int) -> list[int]:
    """Returns the process IDs of all descendants of `pid`."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    except OSError:  # it has exited
        pass
    return found


def pss(pid: int) -> int:
    """Returns a process's proportional set size in bytes; 0 if it has exited."""
    try:
        with Path(f"/proc/{pid}/smaps_rollup").open() as stream:
            return next((int(line.split()[1]) << 10 for line in stream if line.startswith("Pss:")), 0)
    except OSError:
        return 0


def main() -> None:
    result_path, command = Path(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    watch = MemorySampler()
    watch.start()
    with result_path.with_suffix(".out").open("wb") as output, result_path.with_suffix(".err").open("wb") as errors:
        started, clock = time.time(), time.monotonic()
        traffic = TrafficSampler(clock)
        traffic.start()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        code = process.wait()
        seconds = time.monotonic() - clock
    watch.stop()
    traffic.stop()
    try:
        while True:  # wait for orphaned descendants
            os.wait()
    except ChildProcessError:
        pass
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    result_path.write_text(
        json.dumps(
            {
                "code": code,
                "started": started,
                "seconds": seconds,
                "user_seconds": usage.ru_utime,
                "system_seconds": usage.ru_stime,
                "peak_pss_bytes": watch.peak,
                "largest_rss_bytes": usage.ru_maxrss << 10,
                "traffic": traffic.samples,
            }
        )
    )


if __name__ == "__main__":
    main()
