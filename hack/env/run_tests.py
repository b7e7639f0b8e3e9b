"""Runs all tests: those that measure time or compare the whole machine alone, then the others side by side.

Tests of a real node and of a real control plane wait more than they compute, so they share the processors well. Each
lane is a pytest of its own. The last line counts all tests together.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
PARALLEL_RUNS = {
    "node": ["e2e", "images", "docs"],
    "operator": ["controller", "chart"],
}
"""Folders of tests by lane; lanes should take about as long as each other. What isn't named runs alone, and first."""
PROGRESS_INTERVAL_SECONDS = 60
COUNTED = ("passed", "failed", "error", "skipped")


@dataclass
class PytestRun:
    """One pytest and what it printed."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path

    @property
    def progress(self) -> str:
        """How far it is, as pytest says it."""
        found = re.findall(r"\[ *(\d+)%\]", self.output.read_text(errors="replace"))
        return f"{self.name} {found[-1] if found else 0} %"


def main() -> int:
    """Runs both parts and returns 0 when every test of both passed."""
    signal.signal(signal.SIGTERM, _interrupt)
    # A shell that runs this in the background has it ignore interrupts, and what the tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parallel_folders = {folder for folders in PARALLEL_RUNS.values() for folder in folders}
    tests = sorted([*(ROOT / "tests").glob("*/test_*.py"), *(ROOT / "tests").glob("*/*/test_*.py")])
    serial_folders = sorted({path.relative_to(ROOT / "tests").parts[0] for path in tests} - parallel_folders)
    serial_folders += sorted(path.name for path in (ROOT / "tests").glob("test_*.py"))
    folder = Path(tempfile.mkdtemp(prefix="tonnage-tests-"))
    counts: Counter[str] = Counter()
    codes = run(folder, {"alone": serial_folders}, counts) + run(folder, PARALLEL_RUNS, counts)
    if any(codes):
        print(f"tests: what the tests wrote is in {folder}")
    else:
        shutil.rmtree(folder)
    failed = counts["failed"] + counts["error"]
    print(f"{counts['passed']} passed, {failed} failed, {counts['skipped']} skipped")
    return int(any(codes))


def run(folder: Path, lanes: dict[str, list[str]], counts: Counter[str]) -> list[int]:
    """Runs lanes at once and prints one after the other, each when it has ended; returns their exit codes."""
    running = [_start(folder, name, paths) for name, paths in lanes.items()]
    began = sign = time.monotonic()
    codes = []
    try:
        while running:
            for lane in [lane for lane in running if lane.process.poll() is not None]:
                running.remove(lane)
                codes.append(lane.process.returncode)
                text = lane.output.read_text(errors="replace")
                print(f"tests: {lane.name}, {time.monotonic() - began:.0f} s\n{text}", flush=True)
                counts.update(parse_summary_counts(text))
            if running and time.monotonic() - sign >= PROGRESS_INTERVAL_SECONDS:
                sign = time.monotonic()
                print(f"tests: {sign - began:.0f} s: {', '.join(lane.progress for lane in running)}", flush=True)
            time.sleep(0.2)
    finally:
        for lane in running:
            lane.process.send_signal(signal.SIGINT)  # pytest then tears down what it has set up
        for lane in running:
            lane.process.wait()
            print(lane.output.read_text(errors="replace"), flush=True)
    return codes


def parse_summary_counts(text: str) -> Counter[str]:
    """Returns what pytest's closing line counts, by outcome."""
    lines = text.strip().splitlines() or [""]
    found = re.findall(r"(\d+) (\w+)", lines[-1])
    return Counter({word.removesuffix("s"): int(number) for number, word in found if word.removesuffix("s") in COUNTED})


def _start(folder: Path, name: str, paths: list[str]) -> PytestRun:
    output = folder / f"{name}.log"
    # Folders of their own: side by side, pytests would clear each other's away.
    command = [sys.executable, "-m", "pytest", f"--basetemp={folder / name}", *(f"tests/{path}" for path in paths)]
    with output.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    return PytestRun(name, process, output)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
