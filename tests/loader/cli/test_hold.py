"""The holder is small, loses no signal, and releases its locks immediately."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from tonnage.cache import FileLock, LockMode, find_lock_holders
from tonnage.cli import hold

if TYPE_CHECKING:
    from collections.abc import Iterator

LOADER = Path(__file__).parents[3] / "loader"
MOST_RESIDENT_KIB = 12 * 1024

BECOME = """
import os, signal, sys
from pathlib import Path
from tonnage.cache import FileLock, LockMode
from tonnage.cli.hold import exec_holder
lock = FileLock(Path(sys.argv[1]))
lock.acquire(LockMode.SHARED)
exec(sys.argv[3])
exec_holder([lock.fileno()], ready_fd=int(sys.argv[2]) if sys.argv[2] else None)
"""


class HolderProcess:
    """A process that acquires a lock and executes the holder, without a load."""

    def __init__(
        self,
        path: Path,
        *,
        before: str = "",
        ready: bool = True,
        prefix: tuple[str, ...] = (),
        program: str = BECOME,
    ) -> None:
        self.path = path
        read_fd, write_fd = os.pipe()
        arguments = [*prefix, sys.executable, "-c", program, str(path), str(write_fd) if ready else "", before]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(LOADER), "AWS_SECRET_ACCESS_KEY": "hunter2"}
        self.process = subprocess.Popen(arguments, pass_fds=[write_fd], env=environment)
        os.close(write_fd)
        self.pid = self.process.pid
        if ready:
            assert os.read(read_fd, 1) == b"\n"
        os.close(read_fd)

    def wait(self, seconds: float) -> int:
        return self.process.wait(seconds)

    def read_proc(self, name: str) -> str:
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[HolderProcess]:
    with HolderProcess(tmp_path / "use.lock") as running:
        yield running


def is_unlocked(path: Path) -> bool:
    with FileLock(path) as lock:
        return lock.try_acquire(LockMode.EXCLUSIVE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_holds_until_a_signal_and_exits_with_0_within_a_second(holder: HolderProcess, number: int) -> None:
    assert not is_unlocked(holder.path)
    began = time.monotonic()
    holder.process.send_signal(number)
    assert holder.wait(5) == 0
    assert time.monotonic() - began < 1
    assert is_unlocked(holder.path)


def test_it_is_at_most_12_mib_resident(holder: HolderProcess) -> None:
    found = re.search(r"^VmRSS:\s+(\d+) kB$", holder.read_proc("status"), re.MULTILINE)
    assert found is not None
    assert int(found[1]) <= MOST_RESIDENT_KIB


def test_it_keeps_no_credentials_and_no_command_line_of_the_load(holder: HolderProcess) -> None:
    assert "hunter2" not in holder.read_proc("environ")
    assert "AWS" not in holder.read_proc("environ")
    args = holder.read_proc("cmdline").split("\0")
    assert args[1:4] == ["-I", "-S", hold.__file__]
    assert re.fullmatch(r"[0-9]+", args[4])


def test_holders_of_the_lock_include_tonnage(holder: HolderProcess) -> None:
    assert [(found.pid, found.command, found.mode) for found in find_lock_holders(holder.path)] == [
        (holder.pid, "tonnage hold", "shared")
    ]


def test_a_hangup_or_a_child_does_not_end_it(holder: HolderProcess) -> None:
    for number in (signal.SIGHUP, signal.SIGCHLD, signal.SIGHUP):
        holder.process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        holder.wait(0.2)
    assert not is_unlocked(holder.path)


def test_sigkill_releases_the_lock_too(holder: HolderProcess) -> None:
    holder.process.kill()
    assert holder.wait(5) == -9
    assert is_unlocked(holder.path)


def test_a_signal_between_the_load_and_the_holder_is_not_lost(tmp_path: Path) -> None:
    arrive = (
        "import tonnage.cli.hold as hold\n"
        "real = os.execve\n"
        "def execve(*arguments):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    real(*arguments)\n"
        "hold.os = type('os', (), {**vars(os), 'execve': staticmethod(execve)})\n"
    )
    with HolderProcess(tmp_path / "use.lock", before=arrive, ready=False) as running:
        assert running.wait(10) == 0


def test_a_signal_that_the_load_ignored_still_ends_the_holder(tmp_path: Path) -> None:
    with HolderProcess(tmp_path / "use.lock", before="signal.signal(signal.SIGTERM, signal.SIG_IGN)") as running:
        running.process.terminate()
        assert running.wait(5) == 0


def test_without_a_readiness_listener_the_lock_is_kept(tmp_path: Path) -> None:
    before = "r, w = os.pipe(); os.close(r); sys.argv[2] = str(w)"
    with HolderProcess(tmp_path / "use.lock", before=before, ready=False) as running:
        while "hold.py" not in running.read_proc("cmdline"):  # until the exec; signals have been blocked before it
            time.sleep(0.01)
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(0.5)
        running.process.terminate()
        assert running.wait(5) == 0


def test_it_runs_without_a_lock(tmp_path: Path) -> None:
    with HolderProcess(tmp_path / "use.lock", program=BECOME.replace("[lock.fileno()]", "[]")) as running:
        assert is_unlocked(running.path)
        running.process.terminate()
        assert running.wait(5) == 0


def test_as_pid_1_it_exits_on_a_signal_and_reaps(tmp_path: Path) -> None:
    path = tmp_path / "use.lock"
    probe = subprocess.run(["unshare", "-pf", "--mount-proc", "true"], check=False, capture_output=True)
    if probe.returncode:
        pytest.skip("can't make a PID namespace here")
    orphan = (
        "import subprocess, time\n"
        "subprocess.run(['sh', '-c', '(read x < ' + sys.argv[1] + '.go) &'])\n"
        "assert os.getpid() == 1\n"
    )
    os.mkfifo(f"{path}.go")
    with HolderProcess(path, before=orphan, prefix=("unshare", "-pf", "--kill-child", "--mount-proc")) as running:
        (inside,) = [int(pid) for pid in running.read_proc(f"task/{running.pid}/children").split()]
        children = Path(f"/proc/{inside}/task/{inside}/children")
        assert children.read_text().split()
        Path(f"{path}.go").write_text("go\n")
        deadline = time.monotonic() + 5
        while children.read_text().split():
            assert time.monotonic() < deadline, "the orphan was not reaped"
            time.sleep(0.01)
        os.kill(inside, signal.SIGTERM)
        assert running.wait(5) == 0
    assert is_unlocked(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "usage"), (["x"], "usage"), (["99"], "not open"), (["0", "y"], "usage"), (["1,98"], "not open")],
)
def test_a_wrong_command_line_is_an_error(arguments: list[str], words: str) -> None:
    run = subprocess.run(
        [sys.executable, "-I", "-S", hold.__file__, *arguments], check=False, capture_output=True, text=True, timeout=10
    )
    assert run.returncode == 2
    assert words in run.stderr


def test_signals_are_unblocked_if_the_interpreter_cannot_be_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with FileLock(tmp_path / "use.lock") as lock:
        lock.acquire(LockMode.SHARED)
        with pytest.raises(FileNotFoundError):
            hold.exec_holder([lock.fileno()])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
