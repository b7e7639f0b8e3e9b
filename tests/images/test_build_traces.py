"""What builds leave on the machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.repository import ROOT

INTERRUPTED_BUILD = """
import sys
from pathlib import Path

import build
import engines

cache = Path(sys.argv[1])
with build._build_lock(cache):
    engine = engines.Buildah(cache)
    engine.prepare()
    container = engine._buildah("from", "--pull-never", engine.base)
    engine._buildah("mount", container)
    mounts = open("/proc/self/mountinfo").read()
    engine.prepare()
    print(mounts.count(f"{cache}/storage-"), repr(engine._buildah("containers", "--quiet")))
"""


@pytest.mark.skipif(not shutil.which("buildah"), reason="the images were not built with buildah")
def test_an_interrupted_build_leaves_no_mount_and_the_next_one_removes_its_containers(
    build_result: dict[str, Any],
) -> None:
    cache = Path(build_result["images"]["loader"]["archive"]).parents[1]
    command = [sys.executable, "-c", INTERRUPTED_BUILD, str(cache)]
    done = subprocess.run(command, cwd=ROOT / "hack" / "images", capture_output=True, text=True, check=True)
    assert done.stdout == "0 ''\n"
