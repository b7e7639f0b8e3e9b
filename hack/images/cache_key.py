"""The inputs of the images, and a hash of them."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
INPUTS = (
    ".dockerignore",
    "Dockerfile",
    "LICENSE",
    "README.md",
    "hack/images",
    "loader",
    "operator/tonnage_operator",
    "pyproject.toml",
    "requirements/image-build.txt",
    "requirements/image-operator.txt",
    "requirements/runtime.txt",
)
_VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)


def input_files(root: Path = ROOT) -> Iterator[Path]:
    """Yields the files that the images depend on, in a fixed order.

    Raises:
        FileNotFoundError: One is missing.
    """
    for name in INPUTS:
        path = root / name
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        else:
            path.stat()
            yield path


def cache_key(*settings: str, root: Path = ROOT) -> str:
    """Returns the first 16 hex digits of a SHA-256 over all inputs and ``settings``."""
    digest = hashlib.sha256("\0".join(settings).encode())
    for file in input_files(root):
        digest.update(f"\0{file.relative_to(root)}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def copy_inputs(folder: Path) -> None:
    """Copies all inputs, so that an edit during the build can't give an image of mixed sources."""
    for file in input_files():
        copy = folder / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def version(root: Path = ROOT) -> str:
    """Returns the package's version.

    Raises:
        ValueError: It has none.
    """
    file = root / "loader" / "tonnage" / "_version.py"
    found = _VERSION.search(file.read_text())
    if not found:
        raise ValueError(f"{file} has no version.")
    return found[1]


def revision() -> str:
    """Returns the last commit that changed an input, with ``-dirty`` if files differ from it; otherwise ``unknown``."""
    try:
        commit = _git("log", "-1", "--format=%H", "--", *INPUTS)
        changed = _git("status", "--porcelain", "--", *INPUTS)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if commit and changed else commit or "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
