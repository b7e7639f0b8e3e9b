"""The corpus: ``.tensors`` files written by the real tensorizer, at least one for each feature of the format.

Expectations are computed from the source tensors, never read back through tensorizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict, Unpack

import torch
from tensorizer import EncryptionParams, TensorSerializer

from support.tensors_writer import (
    BuiltFile,
    RawTensor,
    build_tensors_file,
    raw_bytes,
    raw_tensors,
    stored_dtype,
    write_tensors_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

__all__ = [
    "SAFETENSORS_DTYPES",
    "BuiltFile",
    "CorpusFile",
    "RawTensor",
    "build_tensors_file",
    "raw_bytes",
    "raw_tensors",
    "stored_dtype",
    "tensorizer_corpus",
    "write_tensors_file",
]

TensorPath = tuple[str | int, ...]

SAFETENSORS_DTYPES = {
    torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.bool,
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    torch.float8_e5m2, torch.float8_e4m3fn, torch.float8_e5m2fnuz, torch.float8_e4m3fnuz, torch.float8_e8m0fnu,
}  # fmt: skip
"""Dtypes that safetensors supports."""

_QUANTIZED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}


@dataclass(frozen=True)
class CorpusFile:
    """A file and its expected contents.

    Attributes:
        name: The feature that it is an example of.
        path: The file.
        tensors: By path, in file order. Meta tensors are on torch's meta device (``tensor.is_meta``); readers return
            zeros for them.
        flat_names: The name of each path in the safetensors layout.
        kinds: 0 parameter, 1 buffer, 2 entry of a state dict.
        module_indexes: Positions of the owning modules; 0 in state dicts.
        version: The expected format version.
        key: 32 bytes; None: not encrypted.
        opens_in_tensorizer: Whether tensorizer 2.12.1 can open the file that it wrote, in reasonable memory.
        safetensors: Whether all of it can be loaded in the safetensors layout, in reasonable memory.
    """

    name: str
    path: Path
    tensors: dict[TensorPath, torch.Tensor]
    flat_names: dict[TensorPath, str]
    kinds: dict[TensorPath, int]
    module_indexes: dict[TensorPath, int] = field(default_factory=dict)
    version: int = 1
    key: bytes | None = None
    opens_in_tensorizer: bool = True
    safetensors: bool = True

    @property
    def encrypted(self) -> bool:
        return self.key is not None

    @property
    def by_flat_name(self) -> dict[str, torch.Tensor]:
        """The tensors as an inference engine should load them, meta ones as zeros; valid if ``safetensors`` is set."""
        return {
            self.flat_names[path]: torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor
            for path, tensor in self.tensors.items()
        }


def random_bits(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    """Returns a tensor of random bit patterns, NaNs and denormals included; booleans are 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel() * dtype.itemsize
    upper = 2 if dtype is torch.bool else 256
    raw = torch.randint(0, upper, (size,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


def all_dtypes() -> list[torch.dtype]:
    """Returns the dtypes of the installed torch that tensorizer can write."""
    found = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    return sorted(found - _QUANTIZED, key=str)


class _SampleModule(torch.nn.Module):
    """Parameters, persistent and non-persistent buffers, at the root and below, and a tied weight."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(random_bits(torch.uint8, 3).to(dtype))
        self.register_buffer("offset", random_bits(torch.uint8, 5, 1).to(dtype))
        self.embed = torch.nn.Embedding(11, 7, dtype=dtype)
        self.layers = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(7, 7, dtype=dtype), torch.nn.LayerNorm(7, dtype=dtype)) for _ in "ab"
        )
        self.norm = torch.nn.BatchNorm1d(7, dtype=dtype)
        self.head = torch.nn.Linear(7, 11, bias=False, dtype=dtype)
        self.head.weight = self.embed.weight
        self.register_buffer("scratch", torch.ones(2, dtype=torch.int64), persistent=False)


class CorpusFileOverrides(TypedDict, total=False):
    """Attributes of ``CorpusFile`` that differ from the defaults."""

    module_indexes: dict[TensorPath, int]
    version: int
    opens_in_tensorizer: bool
    safetensors: bool


class _CorpusWriter:
    """Writes files into a directory and records their expected contents."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: list[CorpusFile] = []

    def state_dict(
        self, name: str, tree: object, *, encrypt: bool = False, **expected: Unpack[CorpusFileOverrides]
    ) -> None:
        tensors = dict(_flatten(tree, ()))
        names = {path: ".".join(map(str, path)) for path in tensors}
        kinds = dict.fromkeys(tensors, 2)
        self._write(name, lambda writer: writer.write_state_dict(tree), tensors, names, kinds, encrypt, expected)

    def module(
        self, name: str, module: torch.nn.Module, *, encrypt: bool = False, **expected: Unpack[CorpusFileOverrides]
    ) -> None:
        tensors: dict[TensorPath, torch.Tensor] = {}
        names: dict[TensorPath, str] = {}
        kinds: dict[TensorPath, int] = {}
        modules: dict[TensorPath, int] = {}
        for index, (prefix, owner) in enumerate(module.named_modules()):
            own = [(0, *item) for item in owner.named_parameters(recurse=False)]
            own += [(1, *item) for item in owner.named_buffers(recurse=False)]
            for kind, leaf, tensor in own:
                path = (f"{prefix}.{leaf}",)
                tensors[path], kinds[path], modules[path] = tensor.detach(), kind, index
                names[path] = f"{prefix}.{leaf}" if prefix else leaf
        expected = {"module_indexes": modules, **expected}
        self._write(name, lambda writer: writer.write_module(module), tensors, names, kinds, encrypt, expected)

    def _write(
        self,
        name: str,
        write: Callable[[TensorSerializer], None],
        tensors: dict[TensorPath, torch.Tensor],
        names: dict[TensorPath, str],
        kinds: dict[TensorPath, int],
        encrypt: bool,
        expected: CorpusFileOverrides,
    ) -> None:
        path = self.directory / f"{name}.tensors"
        encryption = EncryptionParams.random() if encrypt else None
        writer = TensorSerializer(str(path), encryption=encryption)
        write(writer)
        writer.close()
        key = encryption.key if encryption is not None else None
        expected = {"safetensors": not encrypt, **expected}
        self.files.append(CorpusFile(name, path, tensors, names, kinds, key=key, **expected))


def _flatten(tree: object, prefix: TensorPath) -> Iterator[tuple[TensorPath, torch.Tensor]]:
    if isinstance(tree, torch.Tensor):
        yield prefix, tree
        return
    assert isinstance(tree, dict | list)
    items: Iterable[tuple[str | int, object]] = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield from _flatten(value, (*prefix, key))


def _meta(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def tensorizer_corpus(directory: Path) -> list[CorpusFile]:
    """Writes the corpus, about 10 MB, and returns its files. Takes a few seconds: once a session is enough."""
    corpus = _CorpusWriter(directory)
    _write_modules(corpus)
    _write_dtypes(corpus)
    _write_shapes(corpus)
    _write_names(corpus)
    _write_encrypted(corpus)
    many = {f"t{number}": random_bits(torch.float32, number % 7 + 1, seed=number) for number in range(6000)}
    corpus.state_dict("many", many)
    mixed = {
        "embed": random_bits(torch.bfloat16, 512, 1024),
        "odd": random_bits(torch.uint8, 1_000_003),
        "wide": random_bits(torch.float64, 3, 70_001),
        "half": random_bits(torch.float16, 999, 333),
        "mask": random_bits(torch.bool, 77_777),
    }
    corpus.state_dict("mixed-large", mixed, version=2)
    return corpus.files


def _write_modules(corpus: _CorpusWriter) -> None:
    for dtype, version in ((torch.float32, 1), (torch.float16, 1), (torch.bfloat16, 2)):
        label = str(dtype).removeprefix("torch.")
        corpus.module(f"module-{label}", _SampleModule(dtype), version=version)
    marked = torch.nn.Linear(4, 4)
    marked.register_parameter("vllm_tensorized_marker", torch.nn.Parameter(_meta(torch.float32, 1, 1)))
    corpus.module("module-meta-marker", marked, version=4)
    corpus.state_dict("state-dict", _SampleModule(torch.float32).state_dict())


def _write_dtypes(corpus: _CorpusWriter) -> None:
    dtypes = all_dtypes()
    for label, selected in (
        ("dtypes-safetensors", [dtype for dtype in dtypes if dtype in SAFETENSORS_DTYPES]),
        ("dtypes-other", [dtype for dtype in dtypes if dtype not in SAFETENSORS_DTYPES]),
    ):
        tensors = {str(dtype): _patterns(dtype) for dtype in selected}
        corpus.state_dict(label, tensors, version=2, safetensors=label == "dtypes-safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        label = str(dtype).removeprefix("torch.")
        corpus.state_dict(f"one-{label}", {"w": random_bits(dtype, 6, 4)}, version=1 if dtype is torch.float32 else 2)


def _patterns(dtype: torch.dtype) -> torch.Tensor:
    try:
        return random_bits(dtype, 3, 5)
    except RuntimeError:
        # Not every torch supports views of integers below one byte; their bytes are unspecified then.
        return torch.empty((3, 5), dtype=dtype)


def _write_shapes(corpus: _CorpusWriter) -> None:
    full = random_bits(torch.float32, 6, 8)
    corpus.state_dict("scalar", {"scalar": torch.tensor(2.5), "one": torch.tensor([1], dtype=torch.int64)})
    corpus.state_dict(
        "strided",
        {"transposed": full.T, "expanded": full[:1].expand(5, 8), "stepped": full.flatten()[::3], "tail": full[2:, 1]},
    )
    corpus.state_dict("empty", {"a": torch.ones(2), "none": torch.ones(0), "flat": torch.ones(3, 0, 2), "b": full})
    corpus.state_dict(
        "empty-bfloat16", {"none": random_bits(torch.bfloat16, 0), "b": full}, version=2, opens_in_tensorizer=False
    )
    corpus.state_dict("many-dimensions", {"w": torch.arange(4.0).reshape([1] * 30 + [2, 2] + [1] * 32)})
    corpus.state_dict("meta", {"a": full, "absent": _meta(torch.float32, 3, 4), "b": torch.ones(3)}, version=4)
    corpus.state_dict(
        "meta-bfloat16", {"a": full, "absent": _meta(torch.bfloat16, 3, 4)}, version=4, opens_in_tensorizer=False
    )
    long = {"a": full, "long": _meta(torch.uint8, (1 << 32) + 5), "b": torch.ones(3)}
    corpus.state_dict("long", long, version=5, opens_in_tensorizer=False, safetensors=False)


def _write_names(corpus: _CorpusWriter) -> None:
    one = torch.tensor([1.0])
    nested = {
        "model": {"layers": [{"w": one, "b": one * 2}, {"w": one * 3}], "a.b": {"c": one * 4}},
        "head": one * 5,
    }
    corpus.state_dict("nested", nested)
    corpus.state_dict("list", [one, [one * 2, {"x": one * 3}]])
    corpus.state_dict("colliding", {"a": {"b": one}, "a.b": one * 2}, safetensors=False)
    corpus.state_dict("reserved", {"__metadata__": one}, safetensors=False)
    unicode = ["gewichte.größe", "权重/层.0", "emoji 🙂 \u202e", "../../etc/passwd", "nul\0tab\tline\n", '"\\', " "]
    corpus.state_dict("unicode", {name: one * number for number, name in enumerate(unicode)})
    corpus.state_dict("unicode-nested", {"größe": [{"🙂": one}]})
    corpus.state_dict("longest-name", {"n" * 65_535: one, "m": one * 2})


def _write_encrypted(corpus: _CorpusWriter) -> None:
    corpus.module("encrypted-module", _SampleModule(torch.float32), encrypt=True, version=3)
    pieces = {
        "small": random_bits(torch.uint8, 100),
        "piece": random_bits(torch.uint8, 2 << 20),
        "over": random_bits(torch.uint8, (2 << 20) + 1),
    }
    corpus.state_dict("encrypted-pieces", pieces, encrypt=True, version=3)
    with_meta = {"a": random_bits(torch.float32, 8), "absent": _meta(torch.float32, 3)}
    corpus.state_dict("encrypted-meta", with_meta, encrypt=True, version=4)
    long = {"a": random_bits(torch.float32, 8), "long": _meta(torch.uint8, 1 << 33)}
    corpus.state_dict("encrypted-long", long, encrypt=True, version=5, opens_in_tensorizer=False)
