"""Runs all tests, in two pytest processes at a time: many of them wait more than they compute.

First the loader's tests beside those of attach, engines and the repository, then those of a real node beside those of a
real control plane. The last line has the total number of tests.
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
RUNS = (
    {"loader": ["loader"], "other": []},
    {"node": ["e2e", "images", "docs"], "operator": ["controller", "chart"]},
)
"""Folders of tests by group. Groups run beside each other and should take about equally long; "other" has all folders
that are not named here."""
PROGRESS_INTERVAL_SECONDS = 60
COUNTED = ("passed", "failed", "error", "skipped")


@dataclass
class PytestRun:
    """A running pytest process and its output."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path

    @property
    def progress(self) -> str:
        """The percentage that pytest printed last."""
        found = re.findall(r"\[ *(\d+)%\]", self.output.read_text(errors="replace"))
        return f"{self.name} {found[-1] if found else 0} %"


def main() -> int:
    """Runs all tests and returns 0 if every test passed."""
    signal.signal(signal.SIGTERM, _interrupt)
    # A shell ignores SIGINT in background jobs, and the processes that tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    named = {folder for groups in RUNS for folders in groups.values() for folder in folders}
    tests = sorted([*(ROOT / "tests").glob("*/test_*.py"), *(ROOT / "tests").glob("*/*/test_*.py")])
    others = sorted({path.relative_to(ROOT / "tests").parts[0] for path in tests} - named)
    others += sorted(path.name for path in (ROOT / "tests").glob("test_*.py"))
    folder = Path(tempfile.mkdtemp(prefix="tonnage-tests-"))
    counts: Counter[str] = Counter()
    codes: list[int] = []
    for groups in RUNS:
        codes += run(folder, {name: folders or others for name, folders in groups.items()}, counts)
    if any(codes):
        print(f"tests: files of the tests are in {folder}")
    else:
        shutil.rmtree(folder)
    failed = counts["failed"] + counts["error"]
    print(f"{counts['passed']} passed, {failed} failed, {counts['skipped']} skipped")
    return int(any(codes))


def run(folder: Path, groups: dict[str, list[str]], counts: Counter[str]) -> list[int]:
    """Runs groups in parallel, prints the output of each when it ends, and returns their exit codes."""
    running = [_start(folder, name, paths) for name, paths in groups.items()]
    began = reported = time.monotonic()
    codes = []
    try:
        while running:
            for ended in [each for each in running if each.process.poll() is not None]:
                running.remove(ended)
                codes.append(ended.process.returncode)
                text = ended.output.read_text(errors="replace")
                print(f"tests: {ended.name}, {time.monotonic() - began:.0f} s\n{text}", flush=True)
                counts.update(parse_summary_counts(text))
            if running and time.monotonic() - reported >= PROGRESS_INTERVAL_SECONDS:
                reported = time.monotonic()
                print(f"tests: {reported - began:.0f} s: {', '.join(each.progress for each in running)}", flush=True)
            time.sleep(0.2)
    finally:
        for each in running:
            each.process.send_signal(signal.SIGINT)  # pytest then runs its teardowns
        for each in running:
            each.process.wait()
            print(each.output.read_text(errors="replace"), flush=True)
    return codes


def parse_summary_counts(text: str) -> Counter[str]:
    """Returns the counts in pytest's last line, by outcome."""
    lines = text.strip().splitlines() or [""]
    found = re.findall(r"(\d+) (\w+)", lines[-1])
    return Counter({word.removesuffix("s"): int(number) for number, word in found if word.removesuffix("s") in COUNTED})


def _start(folder: Path, name: str, paths: list[str]) -> PytestRun:
    output = folder / f"{name}.log"
    # Separate base folders: parallel pytest processes would remove each other's.
    command = [sys.executable, "-m", "pytest", f"--basetemp={folder / name}", *(f"tests/{path}" for path in paths)]
    with output.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    return PytestRun(name, process, output)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
