"""The model that all contenders load: a tensorizer file with the shapes of a Llama, and the same as safetensors.

The values are random bits. The CRC-32 of each tensor is kept, to check the results of contenders.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class ModelFile:
    """The model's files below a server's `root`. Sizes are in bytes.

    `crc64nvme` and `sha256` are those of the safetensors file, as a store and a hub state them.
    """

    root: Path
    size: int
    crcs: dict[str, int]
    crc64nvme: bytes = b""
    sha256: str = ""

    bucket = "models"
    tensors_key = "llama.tensors"
    safetensors_key = "llama.safetensors"

    @property
    def tensors(self) -> Path:
        return self.root / self.bucket / self.tensors_key

    @property
    def safetensors(self) -> Path:
        return self.root / self.bucket / self.safetensors_key

    @property
    def stated(self) -> Path:
        """Header lines that `sendfile_server.py` sends with the safetensors file."""
        return self.safetensors.with_name(f"{self.safetensors_key}.headers")


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

    from tonnage.contract import ChecksumAlgorithm
    from tonnage.format.checksums import crc_function

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
    crc64nvme = crc_function(ChecksumAlgorithm.CRC64NVME)
    assert crc64nvme is not None, "the compiled part is missing: python loader/native/build_hook.py"
    crc, digest = 0, hashlib.sha256()
    with model.safetensors.open("wb") as out:
        for data in (memoryview(struct.pack("<Q", len(text)) + text), *map(_tensor_bytes, state.values())):
            out.write(data)
            digest.update(data)
            for start in range(0, len(data), BLOCK_BYTES):
                crc = crc64nvme(bytes(data[start : start + BLOCK_BYTES]), crc)
    return ModelFile(
        root=root,
        size=model.tensors.stat().st_size,
        crcs=crcs,
        crc64nvme=crc.to_bytes(8, "big"),
        sha256=digest.hexdigest(),
    )


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
