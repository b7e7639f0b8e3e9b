"""Loads where ``flock`` grants what it doesn't lock: the bytes are right, or a load fails with its reason."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from support.load_harness import BOTH_KINDS
from support.preload_shims import GRANTS_EVERYTHING, LOCKS_FOR_ONE_MACHINE, build_shim
from support.tonnage_cli import CommandResult, command_environment, run_tonnage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from support.load_harness import LoadHarness

COMPILER = shutil.which("cc")
SLOW = ("--bandwidth-limit", "600KB")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, for a library with another flock")


@pytest.fixture(
    scope="module",
    params=[GRANTS_EVERYTHING, LOCKS_FOR_ONE_MACHINE],
    ids=["grants everything", "locks for one machine"],
)
def no_locks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process whose locks lock nothing, or nothing of another process."""
    assert COMPILER is not None
    return {"LD_PRELOAD": str(build_shim(request.param, tmp_path_factory.mktemp("shim"), compiler=COMPILER))}


def arguments(harness: LoadHarness, *options: str) -> list[str]:
    return [
        *("load", "s3://bucket/model/", "--cache", str(harness.cache), "--anonymous", "--region", "us-east-1"),
        *("--endpoint-url", harness.server.endpoint, "--part-size", "128Ki", "--workers", "2", "--connections", "4"),
        *("--progress", "off", *options),
    ]


@contextmanager
def started(harness: LoadHarness, environment: Mapping[str, str], *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tonnage", *arguments(harness, *options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=command_environment(environment),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def result_of(process: subprocess.Popen[str]) -> CommandResult:
    out, err = process.communicate(timeout=50)
    return CommandResult(process.returncode, out, err)


def assert_right(harness: LoadHarness, report: Mapping[str, Any]) -> None:
    """Fails unless a load has the right bytes, or has failed because another load was at work."""
    if report["outcome"] == "failed":
        assert report["reason"] == "CacheInUse", report["message"]
        return
    harness.assert_loaded(harness.load())
    assert run_tonnage("verify", report["entry"], "--cache", harness.cache).returncode == 0


@pytest.mark.parametrize(
    ("weights_kind", "begun"),
    [("tensors", 1), ("tensors", 900_000), ("safetensors", 400_000)],
    indirect=["weights_kind"],
)
def test_a_second_load_beside_one_that_is_at_work_publishes_the_right_bytes(
    harness: LoadHarness, no_locks: dict[str, str], begun: int
) -> None:
    with started(harness, no_locks, *SLOW) as first:
        harness.server.wait_for_bytes(harness.body + begun)
        second = run_tonnage(*arguments(harness), environment=no_locks)
        assert second.report["outcome"] in {"loaded", "hit"}, second.output
        assert_right(harness, second.report)
        assert_right(harness, result_of(first).report)
    harness.assert_loaded(harness.load())


@BOTH_KINDS
def test_a_second_load_that_is_killed_costs_the_first_no_bytes(harness: LoadHarness, no_locks: dict[str, str]) -> None:
    with started(harness, no_locks, *SLOW) as first:
        harness.server.wait_for_bytes(harness.body + 300_000)
        with started(harness, no_locks, *SLOW) as second:
            harness.server.wait_for_bytes(harness.server.bytes_sent + 600_000)
            second.kill()
            second.wait()
        assert_right(harness, result_of(first).report)
    report = harness.load()
    harness.assert_loaded(report)
    assert run_tonnage("verify", report.entry, "--cache", harness.cache).returncode == 0


def test_loads_that_begin_together_all_end_with_the_right_bytes(harness: LoadHarness, no_locks: dict[str, str]) -> None:
    with started(harness, no_locks) as first, started(harness, no_locks) as second, started(harness, no_locks) as third:
        reports = [result_of(process).report for process in (first, second, third)]
    assert "loaded" in {report["outcome"] for report in reports}
    for report in reports:
        assert_right(harness, report)
    assert list(harness.cache.glob("*/.tonnage/partial/*")) == []
