"""Requests to the process that runs real engines."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from support.repository import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

AT_A_TIME = 2
"""Number of engines at the same time; one needs 1.5 GB of memory."""
_SCRIPT = ROOT / "hack/env/engines.sh"
_SERVER = ROOT / "tests/engines_support/engine_server.py"


@functools.cache
def find_python() -> str:
    """Returns the Python of the engines' environment. Skips the test if there is none; in CI it is installed."""
    in_ci = os.environ.get("CI") == "true"
    command = [str(_SCRIPT), *([] if in_ci else ["--installed"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout.strip()
    message = f"No engines: {done.stderr.strip().splitlines()[-1]}"
    if in_ci:
        pytest.fail(message)
    pytest.skip(message)


@dataclass(frozen=True, slots=True)
class Request:
    """A function of ``engine_server.py`` and its arguments."""

    operation: str
    arguments: Mapping[str, Any]


def private_shared_memory() -> list[str]:
    """Returns a command that runs the rest in a mount namespace with shared memory of its own; nothing without root.

    Requests end by SIGKILL, and vLLM's processes would leave their shared memory behind.
    """
    if os.geteuid() != 0:
        return []
    script = 'mount -t tmpfs tmpfs /dev/shm && exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]


class Engines:
    """The process that runs engines. ``versions`` are by name."""

    def __init__(self, process: subprocess.Popen[str], answers: Iterator[str], logs: Path) -> None:
        self._process = process
        self._answers = answers
        self._logs = logs
        self._numbers = itertools.count()
        self.versions: dict[str, str] = self._answer()

    def ask(self, operation: str, **arguments: object) -> dict[str, Any]:
        """Returns the answer to one request; with the keys ``error`` and ``message`` if it failed."""
        return self.ask_all([Request(operation, arguments)])[0]

    def ask_all(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """Runs requests, two at a time, and returns their answers."""
        numbers = [self._start(request) for request in requests[:AT_A_TIME]]
        found = []
        for at, _ in enumerate(requests):
            self._send({"wait": numbers[at]})
            found.append(self._answer())
            if at + AT_A_TIME < len(requests):
                numbers.append(self._start(requests[at + AT_A_TIME]))
        return found

    def _start(self, request: Request) -> int:
        number = next(self._numbers)
        log = self._logs / f"{number:03}-{request.operation}.log"
        arguments = dict(request.arguments)
        self._send({"number": number, "operation": request.operation, "arguments": arguments, "log": str(log)})
        return number

    def _send(self, message: Mapping[str, object]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> Any:
        line = next(self._answers, "")
        assert line, f"the engines' process ended: {(self._logs / 'server.log').read_text()[-2000:]}"
        return json.loads(line)


@contextlib.contextmanager
def start_engines(folder: Path, engine: str = "vllm") -> Iterator[Engines]:
    """Starts the process, with this clone's plugin on its path as in a pod: the package and its metadata.

    ``engine`` is ``sglang`` for requests to SGLang, and ``vllm`` for all others.
    """
    python = find_python()
    plugin = folder / "plugin"
    copy_plugin(plugin)
    logs = folder / "logs"
    logs.mkdir()
    read, write = os.pipe()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))},
        "PYTHONPATH": f"{plugin}:{ROOT / 'tests/engines_support'}",
        "VLLM_CACHE_ROOT": str(folder / "vllm"),
    }
    with (
        (logs / "server.log").open("wb") as log,
        os.fdopen(read) as answers,
        tempfile.TemporaryDirectory(prefix="tonnage-tests-", ignore_cleanup_errors=True) as temporary,
    ):
        process = subprocess.Popen(
            [*private_shared_memory(), python, str(_SERVER), str(write), engine],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=[write],
            env={**environment, "TMPDIR": temporary},  # short, for the sockets that vLLM leaves there
        )
        os.close(write)
        try:
            yield Engines(process, answers, logs)
        finally:
            process.terminate()
            with process:  # closes its standard input
                pass


def copy_plugin(target: Path) -> None:
    """Lays package and metadata out as ``tonnage plugin`` does in a pod."""
    done = subprocess.run(
        [sys.executable, "-m", "tonnage", "plugin", str(target)],
        cwd=ROOT / "loader",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
