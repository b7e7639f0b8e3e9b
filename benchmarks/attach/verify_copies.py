"""Compares tensors on the GPU with the originals, bit for bit: all dtypes and ways, misaligned sources, and a model."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from tonnage.attach import CopyOptions, open_weights
from tonnage.format.dtypes import DTYPES

DEVICE = os.environ.get("TONNAGE_BENCH_DEVICE", "cuda:0")
WAYS: list[dict[str, Any]] = [
    {},
    {"threads": 3, "slots": 2, "slot_bytes": 64 << 10, "group_bytes": 1 << 20},
    {"way": "register", "register_bytes": 2 << 20},
    {"way": "plain"},
    {"direct": "always"},
]


def reference_tensors() -> dict[str, torch.Tensor]:
    """Returns tensors of all dtypes of this PyTorch version, with odd sizes, empty tensors and scalars."""
    generator = torch.Generator().manual_seed(5)
    found = {}
    for dtype in DTYPES:
        torch_dtype = getattr(torch, dtype.torch_name, None)
        if torch_dtype is None:
            continue
        for shape in ((), (0, 3), (7,), (13, 31), (257, 129), (1021, 517)):
            count = torch.Size(shape).numel() * dtype.item_size
            raw = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
            if dtype.torch_name == "bool":
                raw %= 2
            found[f"{dtype.torch_name}.{'x'.join(map(str, shape)) or 'scalar'}"] = raw.view(torch_dtype).view(shape)
    return found


def bitwise_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Returns whether dtype, shape and bytes are equal."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(_bytes(one), _bytes(other))


def values_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Like ``bitwise_equal``, but ignores the payload of NaNs, which differs between processors after a conversion."""
    one, other = one.cpu(), other.cpu()
    return torch.equal(one.isnan(), other.isnan()) and bitwise_equal(one.nan_to_num(0.0), other.nan_to_num(0.0))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8).cpu()


def check_dtypes(folder: Path) -> dict[str, Any]:
    """Checks all dtypes in both formats, with all ways of copying."""
    from safetensors.torch import save_file

    tensors = reference_tensors()
    sources: dict[str, Path] = {}
    plain = {name: tensor for name, tensor in tensors.items() if _has_safetensors_dtype(name)}
    save_file(plain, folder / "all.safetensors")
    sources["safetensors"] = folder / "all.safetensors"
    try:
        from tensorizer import TensorSerializer
    except ImportError:
        pass
    else:
        serializer = TensorSerializer(str(folder / "all.tensors"))
        serializer.write_state_dict(tensors)
        serializer.close()
        sources["tensors"] = folder / "all.tensors"
    found: dict[str, Any] = {}
    for source, path in sources.items():
        for way in WAYS:
            label = f"{source} {json.dumps(way)}"
            try:
                with open_weights(path, options=CopyOptions(**way)) as weights:
                    misaligned = sum(
                        record.length > 0 and record.offset % record.item_size > 0
                        for record in weights.records.values()
                    )
                    loaded = weights.state_dict(DEVICE, progress="off")
                    wrong = [name for name in loaded if not bitwise_equal(loaded[name], tensors[name])]
                    converted = weights.state_dict(DEVICE, dtype=torch.float32, progress="off")
                    wrong += [
                        f"converted {name}"
                        for name, tensor in tensors.items()
                        if name in converted and tensor.dtype in {torch.float16, torch.bfloat16, torch.float64}
                        and not values_equal(converted[name], tensor.to(torch.float32))
                    ]  # fmt: skip
                    found[label] = {"tensors": len(loaded), "misaligned": misaligned, "wrong": wrong}
            except Exception as error:  # noqa: BLE001  # the other ways are still checked
                found[label] = {"error": f"{type(error).__name__}: {error}"[:300], "wrong": ["error"]}
    return found


def _has_safetensors_dtype(name: str) -> bool:
    return next(dtype for dtype in DTYPES if dtype.torch_name == name.partition(".")[0]).safetensors_name is not None


def check_model(path: Path) -> dict[str, Any]:
    """Compares a whole model on the GPU with PyTorch's own copies from the mapping."""
    with open_weights(path) as weights:
        loaded = weights.state_dict(DEVICE, progress="off")
        wrong = [
            name
            for name, tensor in loaded.items()
            if not torch.equal(tensor.view(torch.uint8), weights[name].view(torch.uint8).to(DEVICE))
        ]
        return {"tensors": len(loaded), "bytes": weights.nbytes, "wrong": wrong}


def main() -> None:
    """Runs all checks and prints the result as one line of JSON."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir=Path(sys.argv[1]).parent) as folder:
        found = check_dtypes(Path(folder))
    for path in map(Path, sys.argv[1:]):
        found[str(path)] = check_model(path)
        if DEVICE != "cpu":
            torch.cuda.empty_cache()
    for label, result in found.items():
        print(label, result)
    bad = [label for label, result in found.items() if result["wrong"]]
    tensors = sum(result.get("tensors", 0) for result in found.values())
    summary = f"{tensors} tensors in {len(found)} cases compared bit for bit, {len(bad)} cases with differences"
    print("RESULT " + json.dumps({"summary": summary, "bad": bad, "cases": found}))


if __name__ == "__main__":
    main()
