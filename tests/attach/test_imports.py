"""Importing attach, with and without PyTorch."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

LOADER = next(path for path in sys.path if path.endswith("loader"))


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.path.insert(0, {LOADER!r})\n{program}"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, timeout=50
    )


def test_importing_the_package_imports_no_torch() -> None:
    done = python("import tonnage.attach; print([m for m in ('torch', 'rich', 'msgspec') if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_opening_needs_no_network_library(shard: Path) -> None:
    program = """
for name in ("pycurl", "botocore", "boto3", "isal", "rich"):
    sys.modules[name] = None
import tonnage
with tonnage.open(sys.argv[1]) as weights:
    print(len(weights))
"""
    done = python(program, str(shard))
    assert int(done.stdout) > 0, done.stderr


def test_without_torch_the_error_names_the_package_to_install(shard: Path) -> None:
    program = """
sys.modules["torch"] = None
import tonnage
try:
    tonnage.open(sys.argv[1])
except ImportError as error:
    print(type(error).__name__, error)
"""
    done = python(program, str(shard))
    assert done.stdout.strip().endswith("pip install 'tonnage[attach]'"), done.stderr
    assert done.stdout.startswith("TorchMissing")


@pytest.mark.parametrize("name", ["Weights", "LoadResult", "TensorInfo"])
def test_classes_are_there_for_annotations(name: str) -> None:
    import tonnage.attach

    assert getattr(tonnage.attach, name).__name__ == name
    assert name in tonnage.attach.__all__
