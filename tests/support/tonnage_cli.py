"""Runs the command ``tonnage`` in a subprocess with a controlled environment."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tonnage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TIMEOUT = 120.0  # seconds; `tonnage serialize` starts PyTorch, which takes most of a minute on a busy machine
_LOADER = str(Path(tonnage.__file__).parents[1])


@dataclass(frozen=True)
class CommandResult:
    """The result of a command."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def report(self) -> dict[str, Any]:
        """The last line of standard output, as JSON."""
        report: dict[str, Any] = json.loads(self.stdout.rstrip("\n").rpartition("\n")[2])
        return report

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def command_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns a minimal environment. AWS and Tonnage variables come only from ``extra``."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return {**inherited, "PYTHONPATH": _LOADER, "PYTHONWARNINGS": "error", **(extra or {})}


@contextlib.contextmanager
def start_tonnage(
    *args: str | Path, environment: Mapping[str, str] | None = None, **popen_options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Starts the command with pipes for its output, and kills it at the end of the context."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "tonnage", *map(str, args)]
    with subprocess.Popen(
        command, env=command_environment(environment), text=True, **(streams | popen_options)
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_tonnage(*args: str | Path, environment: Mapping[str, str] | None = None, stdin_text: str = "") -> CommandResult:
    """Runs the command with ``stdin_text`` on standard input until it exits."""
    with start_tonnage(*args, environment=environment, stdin=subprocess.PIPE) as process:
        out, err = process.communicate(stdin_text, timeout=TIMEOUT)
    return CommandResult(process.returncode, out, err)
