"""Runs all tests, in three pytest processes more than there are cores, since many tests wait more than they compute.

The processes take groups of folders and files: first those that wait most, at last small ones, so that no core is idle.
All others yield to tests with a control plane or peers, which wait for controllers, the kubelet and each other. The
last lines have a table of the groups, for how long cores were idle, and the number of tests.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
GROUPS = {
    "node": ["e2e"],
    "pods": [
        f"e2e/test_{name}.py" for name in ("consumers", "in_use", "permissions", "restricted", "serving", "streaming")
    ],
    "control-plane": ["controller/live"],
    "peers": ["loader/peers"],
    "engines": ["engines"],
    "attach": ["attach"],
    "chart": ["chart"],
    "loader": ["loader/cli", "loader/source", "loader/serialize"],
    "repository": ["test_repository.py", "images", "local_cluster"],
    "loading": ["loader/loading"],
    "faults": [
        f"loader/loading/test_{name}.py" for name in ("faults", "ineffective_locks", "object_checksums", "survival")
    ],
    "controller": ["controller"],
    "other": [],
    "cache": ["loader/cache"],
}
"""Folders and files by group, in the order in which they are started. Tests of a group share a node, a control plane or
engines, and "pods" uses the node of "node". A file is in the group that names it, or in that of its innermost folder;
"other" has all that are in no other group. Tests of "cache" fork often, in a process that has not imported PyTorch."""
MORE_PROCESSES = 3
"""How many groups more than there are cores run beside each other: those of pods and of peers wait most of the time."""
CLUSTER_OWNER, CLUSTER_FOLLOWER = "node", "pods"
"""The group that starts a cluster, and the one that uses it. This one does nothing until the other has described it in
``CLUSTER_FILE`` (see ``e2e_support.shared_cluster``), and a further group runs meanwhile."""
CLUSTER_FILE = "cluster.json"
PROMPT = {"node", "pods", "control-plane", "peers"}
"""Groups to which the others yield."""
NICENESS = 10
"""By how much. Linux divides the cores among sessions first, and compares the niceness of processes of one session only
(``sched_autogroup``): so each group has a session, with its own niceness."""
PROGRESS_INTERVAL_SECONDS = 60
COUNTED = ("passed", "failed", "error", "skipped")


@dataclass
class PytestRun:
    """A pytest process and its output.

    ``seconds`` and ``cpu_seconds`` are set when it has ended. CPU seconds are those of all its descendants, except of
    daemons that left their parents: containers and their runtime on a real node.
    """

    name: str
    process: subprocess.Popen[bytes]
    output: Path
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0
    cpu_seconds: float = 0

    def has_ended(self) -> bool:
        """Whether the process has ended; then ``process.returncode`` is set, too."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not pid:
            return False
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.seconds = time.monotonic() - self.began
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        return True

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def progress(self) -> str:
        """The percentage that pytest printed last."""
        found = re.findall(r"\[ *(\d+)%\]", self.text)
        return f"{self.name} {found[-1] if found else 0} %"


def main() -> int:
    """Runs all tests and returns 0 if every test passed."""
    signal.signal(signal.SIGTERM, _interrupt)
    # A shell ignores SIGINT in background jobs, and the processes that tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="tonnage-tests-"))
    idle_before = read_idle_seconds(Path("/proc/stat").read_text())
    ended = run(folder, find_tests(), at_a_time=len(os.sched_getaffinity(0)) + MORE_PROCESSES)
    failed = any(each.process.returncode for each in ended)
    if failed:
        print(f"tests: files of the tests are in {folder}")
    counts = {each.name: parse_summary_counts(each.text) for each in ended}
    print(make_table(ended, counts))
    idle = read_idle_seconds(Path("/proc/stat").read_text()) - idle_before
    print(f"{os.cpu_count()} cores were idle for {idle:.0f} s together")
    if not failed:
        shutil.rmtree(folder)
    kept = ROOT / "hack" / "env" / "kept.sh"
    subprocess.run([kept, "save", "bytecode", sysconfig.get_path("purelib"), "*.pyc"], check=False)
    total = sum(counts.values(), Counter())
    print(f"{total['passed']} passed, {total['failed'] + total['error']} failed, {total['skipped']} skipped")
    return int(failed)


def find_tests() -> dict[str, list[str]]:
    """Returns the files of each group, relative to the repository."""
    places = {TESTS / place: group for group, named in GROUPS.items() for place in named}
    found: dict[str, list[str]] = {group: [] for group in GROUPS}
    for path in sorted(TESTS.rglob("test_*.py")):
        group = next((places[each] for each in (path, *path.parents) if each in places), "other")
        found[group].append(str(path.relative_to(ROOT)))
    return found


def run(folder: Path, groups: dict[str, list[str]], *, at_a_time: int) -> list[PytestRun]:
    """Runs groups in processes beside each other, prints the output of each when it ends, and returns them."""
    waiting = deque(groups.items())
    running: list[PytestRun] = []
    done: list[PytestRun] = []
    began = reported = time.monotonic()
    try:
        while waiting or running:
            while waiting and sum(_is_busy(each, folder) for each in running) < at_a_time:
                running.append(_start(folder, *waiting.popleft()))
            for ended in [each for each in running if each.has_ended()]:
                running.remove(ended)
                done.append(ended)
                _ended_file(folder, ended.name).touch()
                print(f"tests: {ended.name}, {ended.seconds:.0f} s\n{ended.text}", flush=True)
            if running and time.monotonic() - reported >= PROGRESS_INTERVAL_SECONDS:
                reported = time.monotonic()
                print(f"tests: {reported - began:.0f} s: {', '.join(each.progress for each in running)}", flush=True)
            time.sleep(0.2)
    finally:
        for each in running:
            each.process.send_signal(signal.SIGINT)  # pytest then runs its teardowns
        for each in running:
            each.process.wait()
            print(each.text, flush=True)
    return done


def parse_summary_counts(text: str) -> Counter[str]:
    """Returns the counts in pytest's summary, by outcome. Libraries may print more when the process ends."""
    lines = re.findall(r"^=+ (.* in [\d.]+s.*) =+$", text, re.MULTILINE) or [""]
    found = re.findall(r"(\d+) (\w+)", lines[-1])
    return Counter({word.removesuffix("s"): int(number) for number, word in found if word.removesuffix("s") in COUNTED})


def read_idle_seconds(stat: str) -> float:
    """Returns for how long the cores have been idle together, also while they waited for disks, from /proc/stat."""
    _, _, _, _, idle, waiting, *_ = stat.split(maxsplit=7)
    return (int(idle) + int(waiting)) / os.sysconf("SC_CLK_TCK")


def make_table(runs: list[PytestRun], counts: dict[str, Counter[str]]) -> str:
    """Returns a line for each group and one for all: tests, seconds and CPU seconds."""
    rows = [(each.name, counts[each.name].total(), each.seconds, each.cpu_seconds) for each in runs]
    ends = [each.began + each.seconds for each in runs]
    whole = max(ends) - min(each.began for each in runs)
    rows.append(("all", sum(row[1] for row in rows), whole, sum(row[3] for row in rows)))
    lines = [f"{'group':<14}{'tests':>7}{'seconds':>9}{'CPU seconds':>13}"]
    lines += [f"{name:<14}{tests:>7}{seconds:>9.0f}{cpu:>13.0f}" for name, tests, seconds, cpu in rows]
    return "\n".join(lines)


def _is_busy(run: PytestRun, folder: Path) -> bool:
    return run.name != CLUSTER_FOLLOWER or (folder / CLUSTER_FILE).exists()


def _cluster_environment(folder: Path, name: str) -> dict[str, str]:
    """Returns the variables that ``e2e_support.shared_cluster`` reads."""
    others = {CLUSTER_OWNER: ("owner", CLUSTER_FOLLOWER), CLUSTER_FOLLOWER: ("follower", CLUSTER_OWNER)}
    if name not in others:
        return {}
    role, other = others[name]
    return {
        "SHARED_CLUSTER_ROLE": role,
        "SHARED_CLUSTER_FILE": str(folder / CLUSTER_FILE),
        "SHARED_CLUSTER_OTHER_ENDED": str(_ended_file(folder, other)),
    }


def _ended_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.ended"


def _start(folder: Path, name: str, paths: list[str]) -> PytestRun:
    output = folder / f"{name}.log"
    # Separate base folders: parallel pytest processes would remove each other's.
    command = [sys.executable, "-m", "pytest", f"--basetemp={folder / name}", *paths]
    niceness = -NICENESS if name in PROMPT else NICENESS
    if niceness > 0:
        command = ["nice", f"-n{niceness}", *command]
    # With GOGC, kubectl, SeaweedFS and other programs in Go collect garbage less often, which takes less CPU time.
    environment = {**os.environ, **_cluster_environment(folder, name), "GOGC": "400"}
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with contextlib.suppress(OSError):  # not root, or another kernel
        Path(f"/proc/{process.pid}/autogroup").write_text(str(niceness))
    return PytestRun(name, process, output)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
