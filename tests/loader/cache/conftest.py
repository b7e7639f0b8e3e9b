"""Directories in memory and on disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tonnage.cache import inspect_medium

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory that all users can enter."""
    if inspect_medium(SHARED_MEMORY).filesystem != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs here")
    folder = Path(tempfile.mkdtemp(prefix="tonnage-test-", dir=SHARED_MEMORY))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["memory", "disk"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory on each medium."""
    if request.param == "memory":
        folder: Path = request.getfixturevalue("memory")
        return folder
    return tmp_path


@pytest.fixture
def requires_root() -> None:
    """Skips tests that switch to another user."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
