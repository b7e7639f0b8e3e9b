"""``tonnage hold`` keeps a loaded entry in use, from a read-only mount, and needs little for it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.cache_entries import published_entry
from support.tonnage_cli import command_environment, run_tonnage, start_tonnage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tonnage.cache.entry import Entry

MOST_RESIDENT_KIB = 12 * 1024
READ_ONLY_MOUNT = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    return published_entry(tmp_path / "cache")


@contextlib.contextmanager
def holder(*arguments: str | Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Runs ``tonnage hold`` once it holds."""
    with start_tonnage("hold", *arguments, environment=environment) as process:
        wait_until_it_holds(process)
        yield process


def wait_until_it_holds(process: subprocess.Popen[str]) -> None:
    while b"hold.py" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
        assert process.poll() is None, process.communicate()
        os.sched_yield()


def test_the_entry_is_not_removed_while_it_runs_and_is_removable_afterwards(entry: Entry) -> None:
    with holder(entry.path) as process:
        refused = run_tonnage("rm", entry.path)
        assert refused.returncode == 30
        assert f"pid {process.pid} (tonnage hold)" in refused.stderr
        process.terminate()
        assert process.wait(10) == 0
    assert run_tonnage("rm", entry.path).returncode == 0


def test_an_entry_can_be_named_by_a_prefix(entry: Entry) -> None:
    with holder(entry.name[:5], "--cache", entry.path.parent):
        assert run_tonnage("rm", entry.path).returncode == 30


@pytest.mark.skipif(os.geteuid() != 0, reason="a read-only mount takes root")
def test_it_needs_no_permission_to_write_to_the_entry(entry: Entry) -> None:
    command = ["unshare", "-m", "sh", "-c", READ_ONLY_MOUNT, "sh", str(entry.path)]
    command += [sys.executable, "-m", "tonnage", "hold", str(entry.path)]
    with subprocess.Popen(command, env=command_environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until_it_holds(process)
            assert run_tonnage("rm", entry.path).returncode == 30
        finally:
            process.terminate()
        assert process.wait(10) == 0


def test_it_is_at_most_12_mib_resident_and_keeps_no_environment(entry: Entry) -> None:
    with holder(entry.path, environment={"AWS_SECRET_ACCESS_KEY": "hunter2"}) as process:
        found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
        assert found is not None
        assert int(found[1]) <= MOST_RESIDENT_KIB
        assert "hunter2" not in Path(f"/proc/{process.pid}/environ").read_text()


def test_it_holds_several_entries(tmp_path: Path) -> None:
    entries = [published_entry(tmp_path / name).path for name in ("first", "second")]
    with holder(*entries):
        assert [run_tonnage("rm", each).returncode for each in entries] == [30, 30]


def test_with_continue_it_holds_the_entries_that_are_loaded(entry: Entry, tmp_path: Path) -> None:
    with holder(tmp_path / "r-ffffffffffff", entry.path, "--on-failure", "continue"):
        assert run_tonnage("rm", entry.path).returncode == 30


@pytest.mark.parametrize("damage", ["missing", "empty", "partial"])
def test_an_entry_in_which_nothing_is_loaded_is_refused(entry: Entry, damage: str) -> None:
    if damage == "missing":
        path = entry.path.parent / "r-ffffffffffff"
    else:
        path = entry.path
        entry.manifest_path.unlink()
        if damage == "empty":
            for each in entry.model_dir.rglob("*"):
                if each.is_file():
                    each.unlink()
    finished = run_tonnage("hold", path)
    assert finished.returncode == 11
    assert str(path) in finished.stderr


def test_a_damaged_entry_is_refused(entry: Entry) -> None:
    next(entry.model_dir.rglob("*.safetensors")).unlink()
    finished = run_tonnage("hold", entry.path)
    assert finished.returncode == 29


def test_with_continue_it_runs_without_an_entry_and_prints_why(tmp_path: Path) -> None:
    with holder(tmp_path / "r-ffffffffffff", "--on-failure", "continue") as process:
        process.terminate()
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 0
        assert "r-ffffffffffff is not an entry of a cache" in errors
