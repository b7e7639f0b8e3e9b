"""The two ways in which workers receive bodies: compiled, and in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from native import build_hook
from tonnage.transfer import body

if TYPE_CHECKING:
    from pathlib import Path

COMPILED, PYTHON = "compiled", "Python"


@pytest.fixture(scope="session")
def receive_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the compiled part, built as for a wheel."""
    path: Path = tmp_path_factory.mktemp("native") / "receive.so"
    build_hook.compile_library(path, "receive.c")
    return str(path)


@pytest.fixture(params=[COMPILED, PYTHON])
def receiver(request: pytest.FixtureRequest, receive_library: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once with each; returns which."""
    chosen: str = request.param
    monkeypatch.setattr(body, "LIBRARY", receive_library if chosen == COMPILED else "")
    return chosen
