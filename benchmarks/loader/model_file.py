"""The model that all contenders load: a tensorizer file with the shapes of a Llama, and the same as safetensors.

The latter in one file and in shards. The values are random bits. The CRC-32 of each tensor is kept, to check results.
"""

from __future__ import annotations

import base64
import hashlib
import json
import mmap
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

BF16_BYTES = 2
BLOCK_BYTES = 1 << 20


SHARDS = 3
"""A model of 13 GB has as many in the 5 GB shards of transformers 4."""


@dataclass(frozen=True)
class SafetensorsFile:
    """A safetensors file, with its size in bytes, and its checksums as a store (base64) and a hub (hex) state them."""

    key: str
    size: int
    crc64nvme: str
    sha256: str


@dataclass(frozen=True)
class ModelFile:
    """The model's files below a server's `root`.

    `size` is that of the tensorizer file, in bytes. `safetensors_files` are the file with all tensors, if there is one,
    and the shards, if there are any.
    """

    root: Path
    size: int
    crcs: dict[str, int]
    safetensors_files: tuple[SafetensorsFile, ...] = ()

    bucket = "models"
    tensors_key = "llama.tensors"
    safetensors_key = "llama.safetensors"

    @property
    def tensors(self) -> Path:
        return self.root / self.bucket / self.tensors_key

    @property
    def whole(self) -> SafetensorsFile | None:
        """The file with all tensors."""
        return next((file for file in self.safetensors_files if file.key == self.safetensors_key), None)

    @property
    def shards(self) -> list[SafetensorsFile]:
        return [file for file in self.safetensors_files if file.key != self.safetensors_key]

    def path(self, file: SafetensorsFile) -> Path:
        return self.root / self.bucket / file.key


def shapes(size: int) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of a Llama in bf16 of about `size` bytes, with as many layers as fit."""
    hidden_size = 4096 if size >= 8 << 30 else 2048 if size >= 1 << 30 else 512
    intermediate_size, key_value_size, vocab_size = hidden_size * 7 // 2, hidden_size // 4, hidden_size * 16
    layer = {
        "input_layernorm": (hidden_size,),
        "self_attn.q_proj": (hidden_size, hidden_size),
        "self_attn.k_proj": (key_value_size, hidden_size),
        "self_attn.v_proj": (key_value_size, hidden_size),
        "self_attn.o_proj": (hidden_size, hidden_size),
        "post_attention_layernorm": (hidden_size,),
        "mlp.gate_proj": (intermediate_size, hidden_size),
        "mlp.up_proj": (intermediate_size, hidden_size),
        "mlp.down_proj": (hidden_size, intermediate_size),
    }
    layer_bytes = BF16_BYTES * sum(_numel(shape) for shape in layer.values())
    layers = max(1, round((size - 2 * BF16_BYTES * vocab_size * hidden_size) / layer_bytes))
    return {
        "model.embed_tokens.weight": (vocab_size, hidden_size),
        **{f"model.layers.{n}.{name}.weight": shape for n in range(layers) for name, shape in layer.items()},
        "model.norm.weight": (hidden_size,),
        "lm_head.weight": (vocab_size, hidden_size),
    }


def make_model(root: Path, size: int, *, whole: bool, shards: bool) -> ModelFile:
    """Writes the tensorizer file below `root`, and as safetensors what is asked for."""
    import torch
    from isal.isal_zlib import crc32
    from tensorizer import TensorSerializer

    wanted = shapes(size)
    largest = max(map(_numel, wanted.values()))
    # All tensors are views of one block at different offsets, so that a large model needs little memory.
    block = torch.randint(-(1 << 15), 1 << 15, (largest + (1 << 20),), dtype=torch.int16)
    state = {}
    for number, (name, shape) in enumerate(wanted.items()):
        start = number * 4099 % (1 << 20)
        state[name] = block[start : start + _numel(shape)].view(torch.bfloat16).reshape(shape)
    crcs = {name: crc32(_tensor_bytes(tensor)) for name, tensor in state.items()}

    (root / ModelFile.bucket).mkdir(parents=True)
    model = ModelFile(root=root, size=0, crcs=crcs)
    serializer = TensorSerializer(str(model.tensors))
    serializer.write_state_dict(state)
    serializer.close()
    files = {ModelFile.safetensors_key: state} if whole else {}
    if shards:
        files |= _divide(state)
    return ModelFile(
        root=root,
        size=model.tensors.stat().st_size,
        crcs=crcs,
        safetensors_files=tuple(
            _write_safetensors(root / ModelFile.bucket, key, tensors) for key, tensors in files.items()
        ),
    )


def _divide(state: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Returns the tensors of each shard, by its key."""
    total = sum(tensor.nbytes for tensor in state.values())
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(SHARDS)]
    at = 0
    for name, tensor in state.items():
        shards[at * SHARDS // total][name] = tensor
        at += tensor.nbytes
    return {f"model-{n:05}-of-{SHARDS:05}.safetensors": shard for n, shard in enumerate(shards, start=1)}


def _write_safetensors(folder: Path, key: str, tensors: dict[str, torch.Tensor]) -> SafetensorsFile:
    from tonnage.contract import ChecksumAlgorithm
    from tonnage.format.checksums import crc_function

    crc64nvme = crc_function(ChecksumAlgorithm.CRC64NVME)
    assert crc64nvme is not None, "the compiled part is missing: python loader/native/build_hook.py"
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    crc, digest, size = 0, hashlib.sha256(), 0
    with (folder / key).open("wb") as out:
        for data in (memoryview(struct.pack("<Q", len(text)) + text), *map(_tensor_bytes, tensors.values())):
            out.write(data)
            digest.update(data)
            size += len(data)
            for start in range(0, len(data), BLOCK_BYTES):
                crc = crc64nvme(bytes(data[start : start + BLOCK_BYTES]), crc)
    return SafetensorsFile(key, size, base64.b64encode(crc.to_bytes(8, "big")).decode(), digest.hexdigest())


def find_shard_damage(directory: Path, crcs: dict[str, int]) -> str:
    """Returns what is wrong with the safetensors files in `directory`; empty if every tensor is correct."""
    from isal.isal_zlib import crc32

    missing = dict(crcs)
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as data:
            length = struct.unpack("<Q", data[:8])[0]
            header = json.loads(data[8 : 8 + length])
            header.pop("__metadata__", None)
            with memoryview(data) as view:
                for name, tensor in header.items():
                    start, end = (8 + length + offset for offset in tensor["data_offsets"])
                    with view[start:end] as window:
                        if crc32(window) != missing.pop(name, None):
                            return f"{file.name}: {name} is wrong or unknown"
    return f"{len(missing)} tensors are missing" if missing else ""


def _tensor_bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    return tensor.view(torch.int16).numpy().data.cast("B")


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
