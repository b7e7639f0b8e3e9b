"""Small models as files, and assertions on what a load made of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save

from support.tensors_writer import build_tensors_file, raw_bytes, raw_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

REFUSAL = "start_vllm_with_load_format_"
"""What the name of a file begins with because of which engines refuse a folder."""
CONFIG = json.dumps({"architectures": ["Tiny"], "hidden_size": 64}).encode()


def make_tensors(*, seed: int = 0, count: int = 12, rows: int = 256) -> dict[str, torch.Tensor]:
    """Returns ``count`` tensors of several dtypes, of ``rows`` KiB each in float32."""
    generator = torch.Generator().manual_seed(seed)
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.int8]
    return {
        f"layers.{number}.weight": torch.randn((rows, 256), generator=generator)
        .mul(20)
        .to(dtypes[number % len(dtypes)])
        for number in range(count)
    }


def to_tensors_file(tensors: Mapping[str, torch.Tensor]) -> bytes:
    return bytes(build_tensors_file(raw_tensors(dict(tensors))).data)


def to_safetensors_file(tensors: Mapping[str, torch.Tensor]) -> bytes:
    return save(dict(tensors), metadata={"format": "pt"})


def load_safetensors_dir(path: Path) -> dict[str, torch.Tensor]:
    """Reads all shards of a folder with the safetensors library."""
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for shard in sorted(path.rglob("*.safetensors")):
        if not shard.name.startswith(REFUSAL):
            found |= load_file(shard)
    return found


def assert_tensors_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Fails unless names, dtypes, shapes and all bits are equal."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert raw_bytes(found[name]) == raw_bytes(tensor), name
