"""Real engines, the models that they serve, and what ``tonnage load`` makes of them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

import tonnage
from engines_support.engine_client import Engines, Request, find_python, start_engines
from engines_support.engine_matrix import ADAPTER, MODELS
from tonnage.contract import FileSelection
from tonnage.serialize.run import Request as SerializeRequest
from tonnage.serialize.run import serialize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.s3_server import SeaweedS3
    from tonnage.contract import Layout

COMPANIONS = ("config.json", "generation_config.json", "adapter_config.json")


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    find_python()
    with start_engines(tmp_path_factory.mktemp("engines")) as found:
        yield found


@pytest.fixture(scope="session")
def models(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models, as Hugging Face folders and as files of tensorizer."""
    folder = tmp_path_factory.mktemp("models")
    assert "error" not in engines.ask("write_models", folder=str(folder))
    for model in MODELS:
        source, target = folder / model / "hf", folder / model / "serialize"
        files = FileSelection(exclude=("*.json",))
        serialize(SerializeRequest(paths=(source,), target=target, files=files, scratch=folder), environment={})
    return folder


@pytest.fixture(scope="session")
def expected(engines: Engines, models: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """vLLM's answers for the models' own folders, by model and number of ranks; serializes them on the way."""
    wanted = [(model, ranks) for model in MODELS for ranks in (1, 2) if ranks == 1 or model in {"llama", "qwen2"}]
    requests = []
    for model, ranks in wanted:
        target = models / model / ("vllm/model.tensors" if ranks == 1 else "ranks/model-rank-%03d.tensors")
        target.parent.mkdir()
        source = str(models / model / "hf")
        arguments = {"model": source, "target": str(target), "ranks": ranks, "processed": model == "llama-fp8"}
        requests.append(Request("serialize", arguments))
    wanted.append((ADAPTER, 1))
    requests.append(Request("generate", {"model": str(models / "llama/hf"), "adapter": str(models / ADAPTER / "hf")}))
    answers = dict(zip(wanted, engines.ask_all(requests), strict=True))
    assert not [answer for answer in answers.values() if "error" in answer]
    return answers


@pytest.fixture(scope="session")
def load(s3: SeaweedS3, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, Layout], str]:
    """Uploads what ``<model>/<way>`` has and loads it; returns the directory for engines."""
    cache = tmp_path_factory.mktemp("cache")
    bucket = s3.make_bucket()

    def load_one(model: str, way: str, layout: Layout) -> str:
        prefix = f"{model}-{way}"
        folder = models / model / way
        for name in COMPANIONS:
            companion = models / model / "hf" / name
            if companion.exists() and companion.parent != folder:
                shutil.copy(companion, folder)
        s3.put(bucket, {f"{prefix}/{file.name}": file for file in folder.iterdir()})
        report = tonnage.load(
            f"s3://{bucket}/{prefix}/",
            cache=cache,
            endpoint_url=s3.endpoint,
            environment=s3.environment(),
            layout=layout,
        )
        return str(report.path)

    return load_one
