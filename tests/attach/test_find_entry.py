"""Which paths are in an entry."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest

from support.child_processes import UNPRIVILEGED_UID
from tonnage.attach.files.cache_entry import find_entry


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    root = tmp_path / "r-1"
    (root / ".tonnage").mkdir(parents=True)
    (root / "model" / "unet" / "model").mkdir(parents=True)
    return root


@pytest.mark.parametrize("inside", [".", "unet", "unet/model", "unet/model/model.safetensors"])
def test_a_path_in_the_model_is_found_with_its_entry(entry: Path, inside: str) -> None:
    assert find_entry(entry / "model" / inside) == (entry, PurePosixPath(inside))
    assert find_entry(entry) == (entry, PurePosixPath())


def test_a_folder_above_that_looks_like_an_entry_is_not_one(entry: Path) -> None:
    """A model with a file ``.tonnage/manifest.json``, or a folder of another kind beside ``.tonnage``."""
    (entry / "other" / "deep").mkdir(parents=True)
    assert find_entry(entry / "other" / "deep") is None
    (entry / "model" / "unet" / ".tonnage").mkdir()
    assert find_entry(entry / "model" / "unet" / "x.safetensors") == (entry, PurePosixPath("unet/x.safetensors"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder to another user")
def test_another_users_folder_beside_a_model_is_not_its_entry(entry: Path) -> None:
    os.chown(entry / ".tonnage", UNPRIVILEGED_UID, UNPRIVILEGED_UID)
    assert find_entry(entry / "model") is None
