"""The real images, built by `hack/images/build.py` unless up to date, and unpacked once a session."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.containers import unpack
from support.repository import ROOT

if TYPE_CHECKING:
    from support.containers import Image

TOOLS = ROOT / "hack" / "images"
EXIT_CANNOT_BUILD = 3
"""Exit code of the tools if the host lacks a requirement."""


def _run_tool(*args: str) -> str:
    """Runs a tool and returns its output. If the host lacks a requirement: skips (in CI: fails) with its message."""
    result = subprocess.run([sys.executable, *args], cwd=TOOLS, capture_output=True, text=True, check=False)
    if result.returncode == EXIT_CANNOT_BUILD and os.environ.get("CI") != "true":
        pytest.skip(result.stderr.strip().splitlines()[-1])
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="session")
def build_result() -> dict[str, Any]:
    """The JSON output of `hack/images/build.py`. TONNAGE_IMAGE_OPTIONS can have more options for it."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to run containers")
    _run_tool("host.py", "runc")
    result: dict[str, Any] = json.loads(
        _run_tool("build.py", *shlex.split(os.environ.get("TONNAGE_IMAGE_OPTIONS", "")))
    )
    return result


@pytest.fixture(scope="session")
def loader(build_result: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The loader's image."""
    return unpack(Path(build_result["images"]["loader"]["archive"]), tmp_path_factory.mktemp("loader"))


@pytest.fixture(scope="session")
def peer(build_result: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The peers' image."""
    return unpack(Path(build_result["images"]["peer"]["archive"]), tmp_path_factory.mktemp("peer"))


@pytest.fixture(scope="session")
def operator(build_result: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The operator's image."""
    return unpack(Path(build_result["images"]["operator"]["archive"]), tmp_path_factory.mktemp("operator"))
