"""The first signal ends a command in order, the second immediately."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.faults import Fault
from support.tonnage_cli import command_environment, start_tonnage
from tonnage.cli.signals import Cancellation
from tonnage.errors import Interrupted

if TYPE_CHECKING:
    from pathlib import Path

    from support.faulty_server import FaultyServer

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_EC2_METADATA_DISABLED": "true"}


def test_a_polled_signal_does_not_raise() -> None:
    with Cancellation() as cancellation:
        assert not cancellation.canceled()
        os.kill(os.getpid(), signal.SIGTERM)
        assert cancellation.canceled()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_raises_unless_it_is_polled() -> None:
    with Cancellation(), pytest.raises(Interrupted, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["load", "resolve", "inspect"])
def test_a_signal_during_a_request_ends_with_the_code_of_interrupted(
    faulty_server: FaultyServer, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    faulty_server.put("b/x.tensors", b"|TZR|")
    faulty_server.add_fault(Fault(stall_before=True))
    args = ["--cache", tmp_path] if command == "load" else ["--json"]
    with start_tonnage(
        command, "s3://b/x.tensors", "--endpoint-url", faulty_server.url, *args, environment=ENVIRONMENT
    ) as process:
        faulty_server.wait_for_requests(1)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == Interrupted.exit_code == 32
    assert json.loads(out)["reason"] == "Interrupted"
    assert "tonnage: Interrupted: " in err
    assert "Traceback" not in err


def test_the_second_signal_ends_a_program_that_does_not_exit() -> None:
    program = (
        "import time; from tonnage.cli.signals import Cancellation\n"
        "with Cancellation() as asked:\n"
        "    print(asked.canceled(), flush=True)\n"
        "    while not asked.canceled(): time.sleep(0.01)\n"
        "    print(asked.canceled(), flush=True)\n"
        "    time.sleep(50)\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=command_environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "False\n"
        process.terminate()
        assert process.stdout.readline() == "True\n"
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM


def test_the_second_signal_ends_pid_1_too() -> None:
    if subprocess.run(["unshare", "-pf", "true"], check=False, capture_output=True).returncode:
        pytest.skip("can't make a PID namespace here")
    program = (
        "import os, signal; from tonnage.cli.signals import Cancellation\n"
        "with Cancellation() as asked:\n"
        "    asked.canceled()\n"
        "    assert os.getpid() == 1\n"
        "    os.kill(1, signal.SIGTERM)\n"
        "    os.kill(1, signal.SIGTERM)\n"
    )
    command = ["unshare", "-pf", sys.executable, "-c", program]
    finished = subprocess.run(command, env=command_environment(), capture_output=True, check=False, timeout=30)
    assert (finished.returncode, finished.stderr) == (128 + signal.SIGTERM, b"")
