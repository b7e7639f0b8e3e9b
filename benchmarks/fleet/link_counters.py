"""Prints the bytes that each link of a namespace has received and sent, each quarter of a second, until it is ended.

A line is JSON: seconds of the monotonic clock, the share of all cores that were busy since the line before, and by link
the bytes received and sent so far.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

SECONDS = 0.25
TICK = os.sysconf("SC_CLK_TCK")


def counters() -> dict[str, tuple[int, int]]:
    """Returns received and sent bytes by link."""
    found = {}
    for line in Path("/proc/net/dev").read_text().splitlines()[2:]:
        name, _, fields = line.partition(":")
        numbers = fields.split()
        found[name.strip()] = int(numbers[0]), int(numbers[8])
    return found


def busy_seconds() -> float:
    """Returns the seconds that all cores together were busy."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICK


def main() -> None:
    cores = os.cpu_count() or 1
    before, busy = time.monotonic(), busy_seconds()
    while True:
        time.sleep(SECONDS)
        now, used = time.monotonic(), busy_seconds()
        sys.stdout.write(json.dumps([now, (used - busy) / (now - before) / cores, counters()]) + "\n")
        sys.stdout.flush()
        before, busy = now, used


if __name__ == "__main__":
    main()
