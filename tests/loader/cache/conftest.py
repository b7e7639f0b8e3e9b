"""Folders on both media."""

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
    """A folder in memory that every user may enter."""
    if inspect_medium(SHARED_MEMORY).filesystem != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs here")
    folder = Path(tempfile.mkdtemp(prefix="tonnage-test-", dir=SHARED_MEMORY))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["memory", "disk"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder on each medium in turn."""
    if request.param == "memory":
        folder: Path = request.getfixturevalue("memory")
        return folder
    return tmp_path


@pytest.fixture
def requires_root() -> None:
    """For tests that become another user."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
