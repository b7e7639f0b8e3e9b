"""Runs one command and reports what it and all its descendants took, as JSON in a file.

It runs as a process of its own, so that what the kernel sums up for its children is one contender's and nobody else's.
Descendants that lose their parent are adopted and counted too. The command's output goes to a file beside.

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
"""Shortest time between two looks at memory."""

MAX_SAMPLING_SHARE = 0.01
"""Of one core, the looks at memory take at most this share: the kernel walks page tables for each."""


class MemorySampler(threading.Thread):
    """Samples the proportional memory (PSS) of all descendants together, and keeps the peak, in bytes."""

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
        """Ends the sampling."""
        self._done.set()
        self.join()


def descendants(pid: int) -> list[int]:
    """Returns the process ids of all children of `pid`, and of theirs."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    except OSError:  # it ended meanwhile
        pass
    return found


def pss(pid: int) -> int:
    """Returns a process's memory in bytes, pages shared by n processes counted as an nth; 0 when it has ended."""
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
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        code = process.wait()
        seconds = time.monotonic() - clock
    watch.stop()
    try:
        while True:  # what the command left behind, once it ends
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
            }
        )
    )


if __name__ == "__main__":
    main()
