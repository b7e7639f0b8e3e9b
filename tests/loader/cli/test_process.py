"""Properties of every run of the command: streams, exit codes, signals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.cache_entries import published_entry
from support.tonnage_cli import command_environment, run_tonnage, start_tonnage
from tonnage._version import __version__
from tonnage.contract import decode_report

if TYPE_CHECKING:
    from pathlib import Path


def test_the_option_and_the_command_print_the_version() -> None:
    assert run_tonnage("--version").stdout == f"tonnage {__version__}\n"
    assert run_tonnage("version").stdout == f"tonnage {__version__}\n"
    assert json.loads(run_tonnage("version", "--json").stdout)["tonnage"] == __version__


def test_help_goes_to_standard_output_and_succeeds() -> None:
    finished = run_tonnage("load", "--help")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "tonnage load s3://" in finished.stdout


def test_a_load_with_an_invalid_command_line_still_ends_with_a_report() -> None:
    finished = run_tonnage("load", "s3://b/k/", "--cache", "/c", "--part-size", "many")
    assert finished.returncode == 2
    assert finished.report["outcome"] == "failed"
    assert finished.report["reason"] == "InvalidPlan"
    assert finished.stdout.count("\n") == 1
    assert finished.stderr.startswith("tonnage: InvalidPlan: ")
    assert "\n  → See `tonnage load --help`." in finished.stderr


def test_other_commands_print_nothing_on_standard_output_when_they_fail(tmp_path: Path) -> None:
    finished = run_tonnage("ls", "--cache", tmp_path / "gone")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "is not a folder" in finished.stderr


def test_other_commands_print_failures_as_json_with_json(tmp_path: Path) -> None:
    finished = run_tonnage("verify", "r-1", "--cache", tmp_path, "--json")
    assert finished.returncode == 11
    assert json.loads(finished.stdout)["reason"] == "ObjectNotFound"
    assert json.loads(finished.stdout)["remedy"]


def test_without_a_command_the_message_lists_the_commands() -> None:
    finished = run_tonnage()
    assert finished.returncode == 2
    for name in ("load", "resolve", "inspect", "ls", "verify", "rm"):
        assert name in finished.stderr


def test_a_plan_can_be_read_from_standard_input(tmp_path: Path) -> None:
    finished = run_tonnage(
        "load", "--plan", "-", "--cache", tmp_path, stdin_text='{"schema_version": 99, "sources": []}'
    )
    assert finished.returncode == 2
    assert "schema version 99" in finished.report["message"]


def test_report_file_and_termination_message_contain_failures(tmp_path: Path) -> None:
    report, log = tmp_path / "report.json", tmp_path / "log"
    environment = {"TONNAGE_TERMINATION_LOG": str(log)}
    finished = run_tonnage("load", "gopher://x", "--cache", tmp_path, "--report", report, environment=environment)
    assert json.loads(report.read_text()) == finished.report
    assert decode_report(report.read_bytes()) == decode_report(log.read_bytes())


def test_a_closed_pipe_ends_a_table_without_a_message(tmp_path: Path) -> None:
    published_entry(tmp_path)
    reading, writing = os.pipe()
    os.close(reading)
    with start_tonnage("ls", "--cache", tmp_path, stdout=writing) as process:
        os.close(writing)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (141, "")


def test_a_closed_pipe_does_not_change_a_loads_exit_code() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with start_tonnage("load", "gopher://x", "--cache", "/c", stdout=writing) as process:
        os.close(writing)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "Broken" not in err


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_cause_a_crash(tmp_path: Path, closed: str) -> None:
    line = f"exec {sys.executable} -m tonnage load gopher://x --cache {tmp_path} --report {tmp_path}/report {closed}"
    finished = subprocess.run(
        ["sh", "-c", line], env=command_environment(), capture_output=True, check=False, text=True
    )
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert json.loads((tmp_path / "report").read_text())["reason"] == "InvalidPlan"


@pytest.mark.parametrize("debug", [False, True])
def test_an_unexpected_exception_is_reported_as_an_internal_error(tmp_path: Path, debug: bool) -> None:
    """The exception is a module that cannot be imported."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['tonnage.loading'] = None\n")
    loader = command_environment()["PYTHONPATH"]
    environment = {"PYTHONPATH": f"{tmp_path}:{loader}", **({"TONNAGE_DEBUG": "1"} if debug else {})}
    finished = run_tonnage("load", "s3://b/k/", "--cache", tmp_path, environment=environment)
    assert finished.returncode == 70
    assert finished.report["reason"] == "InternalError"
    assert "ModuleNotFoundError" in finished.report["message"]
    assert ("Traceback" in finished.stderr) is debug
