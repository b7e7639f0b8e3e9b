"""A cache hit is cheap: its imports, and the processor's time of the whole process."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from support.tonnage_cli import CommandResult, command_environment

if TYPE_CHECKING:
    from pathlib import Path

    from loader.cli.conftest import Model

EXPENSIVE = {
    "rich", "botocore", "boto3", "torch", "numpy", "safetensors", "tensorizer", "isal", "asyncio", "http.client",
    "urllib.request", "logging", "multiprocessing", "concurrent.futures", "ssl", "socket", "shutil", "tempfile",
    "traceback", "difflib",
}  # fmt: skip
HIT_SECONDS = 0.15


def modules_of(args: list[str], environment: dict[str, str]) -> set[str]:
    """Returns the modules that a run imports."""
    program = (
        "import sys; from tonnage.cli.main import main; code = main(sys.argv[1:]);"
        "print('\\n' + ' '.join(sys.modules)); sys.exit(code)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, *args],
        env=command_environment(environment), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(found.stdout.rpartition("\n\n")[2].split())


def test_a_hit_imports_nothing_expensive(loaded: tuple[Path, CommandResult], model: Model) -> None:
    args = ["load", model.source, "--cache", str(loaded[0])]
    modules = modules_of(args, model.environment)
    assert "tonnage.loading.load" in modules
    assert not EXPENSIVE & modules


def test_help_and_version_import_no_loader() -> None:
    modules = modules_of(["version"], {})
    assert not {name for name in modules if name.startswith(("tonnage.loading", "tonnage.source", "pycurl"))}
    assert not EXPENSIVE & modules


def test_a_listing_for_a_pipe_does_not_import_rich(loaded: tuple[Path, CommandResult]) -> None:
    assert not EXPENSIVE & modules_of(["ls", "--cache", str(loaded[0])], {})


def test_a_hit_takes_milliseconds(loaded: tuple[Path, CommandResult], model: Model) -> None:
    """Counts the processor's time, which other processes change little, and takes the least of several runs."""
    args = [sys.executable, "-c", "import sys; from tonnage.cli.main import main; sys.exit(main(sys.argv[1:]))"]
    args += ["load", model.source, "--cache", str(loaded[0])]
    environment = {
        name: value for name, value in command_environment(model.environment).items() if name != "PYTHONWARNINGS"
    }
    took = []
    for _ in range(8):
        process = subprocess.Popen(args, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        took.append(usage.ru_utime + usage.ru_stime)
    assert min(took) <= HIT_SECONDS
