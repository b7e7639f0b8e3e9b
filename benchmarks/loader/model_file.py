"""The model that all contenders load: a tensorizer file with the shapes of a Llama, and the same as safetensors.

The values are random bits. The CRC-32 of each tensor is kept, to check the results of contenders.
"""

from __future__ import annotations

import json
import mmap
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

BF16_BYTES = 2


@dataclass(frozen=True)
class ModelFile:
    """The model's files below a server's `root`. Sizes are in bytes."""

    root: Path
    size: int
    crcs: dict[str, int]

    bucket = "models"
    tensors_key = "llama.tensors"
    safetensors_key = "llama.safetensors"

    @property
    def tensors(self) -> Path:
        return self.root / self.bucket / self.tensors_key

    @property
    def safetensors(self) -> Path:
        return self.root / self.bucket / self.safetensors_key


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


def make_model(root: Path, size: int) -> ModelFile:
    """Writes both files below `root`."""
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

    header, end = {}, 0
    for name, shape in wanted.items():
        start, end = end, end + BF16_BYTES * _numel(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with model.safetensors.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for tensor in state.values():
            out.write(_tensor_bytes(tensor))
    return ModelFile(root=root, size=model.tensors.stat().st_size, crcs=crcs)


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
