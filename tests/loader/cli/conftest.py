"""A small model that tensorizer wrote, on a real S3 server, and a cache with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import pytest

from support.tonnage_cli import CommandResult, run_tonnage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from support.s3_server import SeaweedS3

CONFIG = {"model_type": "tiny"}


class Model(NamedTuple):
    """The model at ``source``, and the environment variables to read it."""

    source: str
    bucket: str
    file: bytes
    tensors: Mapping[str, torch.Tensor]
    environment: dict[str, str]


@pytest.fixture(scope="session")
def tensors_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A ``.tensors`` file that tensorizer wrote, and its tensors."""
    import torch
    from tensorizer import TensorSerializer

    generator = torch.Generator().manual_seed(3)
    tensors = {
        f"layers.{number}.weight": torch.randn((64, 256), generator=generator).to(dtype)
        for number, dtype in enumerate([torch.float32, torch.bfloat16, torch.float16, torch.bfloat16])
    }
    path = tmp_path_factory.mktemp("tensorizer") / "model.tensors"
    serializer = TensorSerializer(str(path))
    serializer.write_state_dict(dict(tensors))
    serializer.close()
    return path, tensors


@pytest.fixture(scope="session")
def model(s3: SeaweedS3, tensors_file: tuple[Path, dict[str, torch.Tensor]]) -> Model:
    """The model with a companion in its own bucket."""
    path, tensors = tensors_file
    bucket = s3.make_bucket()
    data = path.read_bytes()
    s3.put(bucket, {"tiny/model.tensors": data, "tiny/config.json": json.dumps(CONFIG).encode()})
    return Model(f"s3://{bucket}/tiny/", bucket, data, tensors, s3.environment())


@pytest.fixture(scope="module")
def loaded(model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CommandResult]:
    """A cache with the model in it, and the run that loaded it."""
    cache = tmp_path_factory.mktemp("cache")
    return cache, run_tonnage("load", model.source, "--cache", cache, environment=model.environment)
