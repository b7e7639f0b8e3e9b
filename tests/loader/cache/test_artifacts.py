"""Directories of engine artifacts: writable by any engine, measured and removed whatever an engine puts there."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.tonnage_cli import run_tonnage, start_tonnage
from tonnage.cache.artifacts import MAX_DEPTH, MAX_FILES, prepare_artifacts
from tonnage.cache.entry import Entry
from tonnage.cache.eviction import evict
from tonnage.contract.report import MAX_ARTIFACTS_BYTES

if TYPE_CHECKING:
    from pathlib import Path

NAME = f"a-{'0' * 32}"
ENGINE = 1000
"""User of an engine."""


@pytest.fixture
def directory(root: Path) -> Path:
    return root / NAME


def _as_engine(directory: Path, program: str) -> None:
    """Runs Python as an engine does: in its files, as another user if this one is root."""
    drop = f"os.setgroups([]); os.setgid({ENGINE}); os.setuid({ENGINE})" if os.geteuid() == 0 else ""
    # A container has its files mounted, so it needs no permission to search what is above them.
    files = os.open(directory / "files", os.O_RDONLY)
    try:
        script = f"import os; os.fchdir({files}); {drop}\n{program}"
        subprocess.run([sys.executable, "-ISBc", script], check=True, pass_fds=[files])
    finally:
        os.close(files)


def test_an_engine_of_any_user_writes_and_no_other_user_of_the_node_looks_in(directory: Path) -> None:
    assert prepare_artifacts(directory).bytes == 0
    _as_engine(directory, "os.makedirs('triton/x'); open('triton/x/kernel', 'w').write('k' * 9000)")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    size = prepare_artifacts(directory)
    assert size.name == NAME
    assert 9000 <= size.bytes < 100_000
    assert (directory / "files" / "triton" / "x" / "kernel").stat().st_size == 9000


def test_private_files_links_and_pipes_of_an_engine_are_removed_and_nothing_elsewhere(
    directory: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("kept")
    prepare_artifacts(directory)
    _as_engine(
        directory,
        f"os.mkdir('private', 0o700); open('private/x', 'w').write('x')\n"
        f"os.symlink({str(elsewhere)!r}, 'link'); os.symlink({str(elsewhere)!r}, 'private/link'); os.mkfifo('pipe')\n"
        f"os.chmod('private', 0)",
    )
    assert prepare_artifacts(directory).bytes < 100_000
    assert evict(Entry(directory)) > 0
    assert list((directory / "files").iterdir()) == []
    assert (elsewhere / "kept").read_text() == "kept"
    assert prepare_artifacts(directory).bytes == 0


def test_a_tree_of_any_depth_counts_as_too_large_and_is_removed(directory: Path) -> None:
    prepare_artifacts(directory)
    _as_engine(directory, "for _ in range(3000): os.mkdir('d'); os.chdir('d')\nopen('end', 'w').write('end')")
    assert prepare_artifacts(directory).bytes == MAX_ARTIFACTS_BYTES
    evict(Entry(directory))
    assert list((directory / "files").iterdir()) == []


def test_the_limits_of_measuring_are_far_above_what_engines_write() -> None:
    assert MAX_DEPTH >= 50
    assert MAX_FILES >= 100_000


def test_the_command_line_prepares_measures_and_removes(directory: Path, root: Path) -> None:
    done = run_tonnage("load", "--cache", root, "--artifacts", directory, "s3://bucket/x.tensors", "--timeout", "0.01")
    assert done.returncode != 0
    _as_engine(directory, "open('kernel', 'w').write('k' * 5000)")
    removed = run_tonnage("rm", "--cache", root, NAME)
    assert (removed.returncode, removed.stderr) == (0, "")
    assert removed.stdout.startswith(f"removed {NAME}, ")
    assert list((directory / "files").iterdir()) == []
    assert run_tonnage("rm", "--cache", root, "--ignore-not-found", f"a-{'1' * 32}").returncode == 0


def test_a_loader_waits_until_a_removal_has_ended(directory: Path, root: Path) -> None:
    prepare_artifacts(directory)
    removal = Entry(directory).try_acquire_exclusive_use_lock()
    assert removal is not None
    arguments = ("load", "--cache", root, "--artifacts", directory, "s3://bucket/x.tensors", "--timeout", "0.01")
    with start_tonnage(*arguments) as loader, pytest.raises(subprocess.TimeoutExpired):
        loader.wait(1)
    removal.release()
    assert run_tonnage(*arguments).returncode not in {0, -9}
