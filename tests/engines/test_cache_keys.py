"""vLLM's own cache keys differ between revisions, and are equal for the same revision in two places."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file, save_file

import tonnage
from support.models import make_tensors, to_tensors_file
from support.repository import ROOT
from tonnage.contract import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from support.faulty_server import FaultyServer

HASH = """
import json, sys
from vllm.model_executor.model_loader.weight_cache.protocol import hash_checkpoint
print(json.dumps([hash_checkpoint(path) for path in sys.argv[1:]]))
"""


def engines_python() -> str:
    """Returns the Python of the engines' environment. Skips the test if there is none; in CI it is installed."""
    in_ci = os.environ.get("CI") == "true"
    command = ["sh", str(ROOT / "hack/env/engines.sh"), *([] if in_ci else ["--installed"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"vLLM is not installed: {done.stderr.strip()}")
    return done.stdout.strip()


def keys_of(*folders: Path) -> list[str]:
    """Returns vLLM's keys of checkpoints, by which its ``ipc_cache`` finds weights that are on a GPU already."""
    done = subprocess.run(
        [engines_python(), "-c", HASH, *map(str, folders)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def without_metadata(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.glob("*.safetensors"):
        save_file(load_file(path), target / path.name)
    return target


@pytest.mark.timeout(600)
def test_two_revisions_have_different_keys_in_vllms_cache(faulty_server: FaultyServer, tmp_path: Path) -> None:
    engines_python()

    def load(seed: int, place: str) -> Path:
        faulty_server.put("bucket/model/model.tensors", to_tensors_file(make_tensors(seed=seed)))
        report = tonnage.load(
            "s3://bucket/model/",
            cache=tmp_path / place,
            endpoint_url=faulty_server.endpoint,
            anonymous=True,
            limits=Limits(workers=1, segment_size=1 << 20),
            environment={},
        )
        return tmp_path / place / report.entry / "model"

    folders = [load(0, "a"), load(0, "b"), load(1, "a")]
    bare = [without_metadata(folder, tmp_path / str(at)) for at, folder in enumerate(folders)]
    first, same, other, *without = keys_of(*folders, *bare)
    assert first == same
    assert first != other
    assert len(set(without)) == 1, "headers without the revision have equal keys, so the test shows its effect"
