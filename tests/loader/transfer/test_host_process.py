"""The process from which workers are forked: a fork of a command's process, or a new interpreter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tonnage.transfer import host_process
from tonnage.transfer.host_process import HostProcess
from tonnage.transfer.worker_process import WorkerHost

if TYPE_CHECKING:
    from collections.abc import Iterator

LOADER = Path(__file__).parents[3] / "loader"

FORK = """
import json, os, socket, sys
from tonnage.transfer.worker_process import WorkerHost
lock, other = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), os.open(sys.argv[1], os.O_RDWR)
mine, peers = socket.socketpair()
host = WorkerHost(pass_fds=[lock], environment={}, may_fork=True)
exit_code = host.start_worker().close()
(pid,) = [int(each) for each in open(f"/proc/self/task/{os.getpid()}/children").read().split()]
mine.close()
peers.settimeout(20)
ended = peers.recv(1) == b""
links = [os.readlink(f"/proc/{pid}/fd/{each}") for each in os.listdir(f"/proc/{pid}/fd")]
command, session = open(f"/proc/{pid}/cmdline").read(), os.getsid(pid)
host.close()
is_fork = command == open("/proc/self/cmdline").read()
print(json.dumps([exit_code, ended, links, is_fork, session == pid, os.path.exists(f"/proc/{pid}")]))
"""


def test_a_fork_keeps_nothing_open_but_what_it_was_given(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = [sys.executable, "-c", FORK, str(lock)]
    done = subprocess.run(
        program, env={"PYTHONPATH": str(LOADER)}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    exit_code, ended, links, is_fork, has_session, remains = json.loads(done.stdout)
    assert exit_code == 0
    assert ended, "the fork has no copy of the socket that its parent has closed"
    assert links.count(str(lock)) == 1
    others = [link for link in links if link not in {str(lock), os.devnull}]
    kinds = sorted(link.partition(":")[0] for link in others)
    assert kinds == ["pipe", "socket"], "standard error, and the socket to its parent"
    assert (is_fork, has_session, remains) == (True, True, False)


@pytest.fixture
def another_thread() -> Iterator[None]:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield
    done.set()
    thread.join()


def child_of_this_process() -> int:
    """Returns the newest one; servers of other tests may run, too."""
    *_, pid = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return int(pid)


@pytest.mark.parametrize("may_fork", [False, True])
@pytest.mark.usefixtures("another_thread")
def test_a_process_with_threads_is_not_forked(*, may_fork: bool) -> None:
    host = WorkerHost(pass_fds=[], environment={"AWS_SECRET_ACCESS_KEY": "secret", "no_proxy": "*"}, may_fork=may_fork)
    pid = child_of_this_process()
    try:
        assert host.start_worker().close() == 0
        variables = Path(f"/proc/{pid}/environ").read_text()
        assert "worker_host" in Path(f"/proc/{pid}/cmdline").read_text()
    finally:
        host.close()
    assert "no_proxy=*" in variables
    assert "secret" not in variables


def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_process, "EXIT_SECONDS", 0.05)
    host = HostProcess(pass_fds=[], environment={}, may_fork=False)
    pid = child_of_this_process()
    os.kill(pid, 19)  # SIGSTOP
    host.close()
    assert not Path(f"/proc/{pid}").exists()


def test_prepared_workers_are_used_first_and_those_that_are_left_end_with_the_host() -> None:
    host = WorkerHost(pass_fds=[], environment={})
    pid = child_of_this_process()
    host.prepare(2)
    workers = [host.start_worker(), host.start_worker(), host.start_worker()]
    assert [worker.close() for worker in workers] == [0, 0, 0]
    host.prepare(2)
    (left,) = [host.start_worker()]
    assert left.close() == 0
    host.close()
    assert not Path(f"/proc/{pid}").exists()


def test_a_host_that_was_killed_before_it_forked_prepared_workers_is_replaced() -> None:
    host = WorkerHost(pass_fds=[], environment={})
    pid = child_of_this_process()
    os.kill(pid, signal.SIGSTOP)
    host.prepare(2)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    worker = host.start_worker()
    assert child_of_this_process() != pid
    assert worker.close() == 0
    host.close()
