"""vLLM's own cache keys differ between revisions, and are equal for the same revision in two places."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file, save_file

import tonnage
from support.models import make_tensors, to_tensors_file
from tonnage.contract import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from engines_support.engine_client import Engines
    from support.faulty_server import FaultyServer


def without_metadata(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.glob("*.safetensors"):
        save_file(load_file(path), target / path.name)
    return target


@pytest.mark.timeout(600)
def test_two_revisions_have_different_keys_in_vllms_cache(
    engines: Engines, faulty_server: FaultyServer, tmp_path: Path
) -> None:
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
    first, same, other, *without = engines.ask("checkpoint_keys", folders=[*map(str, folders + bare)])["keys"]
    assert first == same
    assert first != other
    assert len(set(without)) == 1, "headers without the revision have equal keys, so the test shows its effect"


@pytest.mark.timeout(600)
def test_vllm_finds_compiled_code_of_another_revision_if_it_does_not_know_the_revision(
    engines: Engines, models: Path
) -> None:
    """The directory is the same in each pod, and code doesn't depend on the weights' values."""
    model = str(models / "llama/hf")
    plain, again, one, other = engines.ask("code_keys", model=model, revisions=[None, None, "a", "b"])["keys"]
    assert plain == again
    assert len({plain, one, other}) == 3
