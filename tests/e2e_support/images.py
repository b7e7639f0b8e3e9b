"""Builds the images for the e2e tests from the repository's Dockerfile, unless they are up to date."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from support.repository import ROOT

SCRIPT = ROOT / "hack" / "images" / "build.py"
EXIT_CANNOT_BUILD = 3
"""Exit code of the build if the host can't build images."""


class ImageBuildUnavailable(Exception):
    """The host can't build images; the message names what is missing."""


@dataclass(frozen=True)
class Images:
    """Names of the images, and their archives."""

    loader: str
    operator: str
    archives: tuple[Path, ...]


def build_images() -> Images:
    """Builds the images, or finds the previous build.

    Raises:
        ImageBuildUnavailable: The host can't build images.
    """
    result = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    if result.returncode == EXIT_CANNOT_BUILD:
        raise ImageBuildUnavailable(result.stderr.strip().splitlines()[-1])
    if result.returncode:
        raise RuntimeError(f"{SCRIPT.name} failed with {result.returncode}:\n{result.stderr[-4000:]}")
    built = json.loads(result.stdout)["images"]
    archives = tuple(Path(image["archive"]) for image in built.values())
    return Images(built["loader"]["name"], built["operator"]["name"], archives)
