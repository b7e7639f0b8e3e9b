"""Weights as files, directories and published entries."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from native import build_hook
from support.attach_fixture_types import FILE_BYTES
from support.cpu_engine import CpuEngine
from tonnage.attach import CopyOptions
from tonnage.attach.files.source_file import SourceFile
from tonnage.attach.native.library import load_library
from tonnage.attach.weights import open_path
from tonnage.cache import Cache, FileRecord, Manifest, SourceRecord, TensorRecord, TensorTable, commit
from tonnage.cache.partial import create_partial
from tonnage.contract import Layout, Verify
from tonnage.format.tensors_index import PREAMBLE_BYTES, parse_index, parse_preamble
from tonnage.planning.blueprint import EntryShape, SourceObject
from tonnage.planning.blueprint_builder import build_blueprint

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from support.attach_fixture_types import Attach, LoadWithWorkers, MakeEntry, TensorsEqual
    from tonnage.attach import Weights
    from tonnage.attach.device.engine import Engine
    from tonnage.attach.progress import Progress
    from tonnage.cache import Entry
    from tonnage.planning.blueprint import Blueprint

SMALL_BUFFERS = CopyOptions(threads=3, slots=2, slot_bytes=64 << 10, group_bytes=1 << 20)
"""Buffers so small that even small tensors need many chunks."""


@pytest.fixture(scope="module")
def data() -> bytes:
    """``FILE_BYTES`` random bytes."""
    return random.Random(1).randbytes(FILE_BYTES)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> Iterator[SourceFile]:
    """An open file that has the bytes of ``data``."""
    path = tmp_path_factory.mktemp("read") / "file"
    path.write_bytes(data)
    with SourceFile(path) as opened:
        yield opened


def _source_object(path: Path, rank: int | None, name: str | None = None) -> SourceObject:
    data = path.read_bytes()
    preamble = parse_preamble(data, object_size=len(data), label=path.name)
    end = PREAMBLE_BYTES + preamble.index_length
    index = parse_index(preamble, data[PREAMBLE_BYTES:], object_size=len(data), label=path.name)
    return SourceObject(f"s3://bucket/{path.name}", name or path.name, len(data), rank, index, data[:end])


def build_entry(
    root: Path,
    files: Sequence[Path],
    *,
    layout: Layout = Layout.SAFETENSORS,
    ranks: bool = False,
    names: Sequence[str] = (),
    segment_size: int = 0,
) -> Entry:
    """Publishes an entry of these ``.tensors`` files, laid out by the loader's own blueprint."""
    sources = [
        _source_object(path, number if ranks else None, names[number] if names else None)
        for number, path in enumerate(files)
    ]
    blueprint = build_blueprint(sources, EntryShape(layout=layout, segment_size=segment_size))
    entry = Cache(root).entry("r-0123456789ab")
    entry.path.mkdir(parents=True)
    entry.create()
    with entry.acquire_load_lock():
        partial = create_partial(entry)
        model = partial.model_dir
        for file in blueprint.files:
            (model / file.path).parent.mkdir(parents=True, exist_ok=True)
            (model / file.path).write_bytes(file.prefix.ljust(file.size, b"\0"))
        for segment in blueprint.segments:
            data = files[segment.object_index].read_bytes()
            for piece in segment.pieces(segment.start, segment.end):
                if piece.target_offset >= 0:
                    with (model / blueprint.files[piece.file_index].path).open("r+b") as out:
                        os.pwrite(out.fileno(), data[piece.start : piece.end], piece.target_offset)
        commit.publish(entry, partial, *_records(blueprint, sources))
    return entry


def _records(blueprint: Blueprint, sources: Sequence[SourceObject]) -> tuple[Manifest, TensorTable]:
    indexes = [source.tensors_index for source in sources if source.tensors_index is not None]
    manifest = Manifest(
        revision="r-0123456789ab", digest="sha256:00", layout=blueprint.layout, verified=Verify.CRC32, created=1.0,
        tonnage_version="0.1", bytes=blueprint.file_bytes,
        sources=tuple(
            SourceRecord(
                place="bucket", key=source.path, size=source.size, kind="tensors", rank=source.rank,
                encrypted=index.encrypted,
            )
            for source, index in zip(sources, indexes, strict=True)
        ),
        files=tuple(
            FileRecord(path=file.path, size=file.size, kind=file.kind, source=file.object_index, rank=file.rank)
            for file in blueprint.files
        ),
    )  # fmt: skip
    tensors = []
    for placed in blueprint.placements:
        tensor = indexes[placed.object_index].tensors[placed.tensor_index]
        path = None if tensor.path == (tensor.name,) else tensor.path
        tensors.append(
            TensorRecord(
                tensor.name, path, placed.object_index, tensor.kind, tensor.dtype.stored_name, tensor.shape,
                placed.file_index, placed.offset, tensor.length, tensor.header_offset, b"",
            )
        )  # fmt: skip
    return manifest, TensorTable(tensors=tuple(tensors))


@pytest.fixture
def make_entry(tmp_path: Path) -> MakeEntry:
    """Publishes entries below a cache root of their own: ``make_entry(files, layout=…, ranks=…)``."""
    roots = iter(range(1000))
    return lambda files, **kwargs: build_entry(tmp_path / f"cache-{next(roots)}", files, **kwargs)


def sample_tensors() -> dict[str, torch.Tensor]:
    """A few hundred KB in several dtypes, with empty, scalar, odd-sized and quantized tensors."""
    generator = torch.Generator().manual_seed(3)
    found = {f"layers.{n}.weight": torch.randn(301 + n, 129, generator=generator).bfloat16() for n in range(8)}
    found |= {f"layers.{n}.bias": torch.randn(7, generator=generator) for n in range(8)}
    found["embed"] = torch.randn(1003, 101, generator=generator)
    found["scale"] = torch.tensor(2.5, dtype=torch.float16)
    found["none"] = torch.zeros(0, 4, dtype=torch.bfloat16)
    found["ids"] = torch.arange(1001)
    found["spin"] = torch.randn(5, dtype=torch.complex64, generator=generator)
    found["quantized"] = torch.randn(3, 5, generator=generator).to(torch.float8_e4m3fn)
    return found


@pytest.fixture(scope="session")
def tensors() -> dict[str, torch.Tensor]:
    return sample_tensors()


@pytest.fixture
def shard(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A safetensors file, written by the safetensors library."""
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    return path


@pytest.fixture(scope="session")
def tensors_file(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, torch.Tensor]) -> Path:
    """The same tensors in a ``.tensors`` file, written by tensorizer. Most of them are misaligned."""
    from tensorizer import TensorSerializer

    path = tmp_path_factory.mktemp("written") / "model.tensors"
    serializer = TensorSerializer(str(path))
    serializer.write_state_dict(tensors)
    serializer.close()
    return path


@pytest.fixture(scope="session")
def native_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled copy, built as for a wheel."""
    path = tmp_path_factory.mktemp("native") / "copy_ring.so"
    build_hook.compile_library(path)
    return path


@pytest.fixture(scope="session")
def native_library(native_path: Path) -> ctypes.CDLL:
    library = load_library(native_path)
    assert library is not None
    return library


@pytest.fixture
def attach() -> Iterator[Attach]:
    """Opens weights whose copies go through the copy workers, with the CPU as the device."""
    opened: list[Weights] = []

    def open_(path: Path, *, options: CopyOptions = SMALL_BUFFERS, engine: Engine | None = None) -> Weights:
        weights = open_path(
            path,
            rank=None,
            device=None,
            meta_tensors="zeros",
            options=options,
            engine_factory=lambda _: engine or CpuEngine(),
        )
        opened.append(weights)
        return weights

    yield open_
    for weights in opened:
        weights.close()


@pytest.fixture
def load_with_workers() -> LoadWithWorkers:
    """Loads all tensors through the copy workers, as onto a GPU."""

    def load(
        weights: Weights, *, dtype: torch.dtype | None = None, progress: Progress = "off"
    ) -> dict[str, torch.Tensor]:
        from tonnage.attach.progress import ProgressReporter

        with ProgressReporter(progress, weights.nbytes, description="test") as reporter:
            return weights._copier.load(
                list(weights.records.values()), torch.device("cpu"), dtype=dtype, reporter=reporter
            )

    return load


@pytest.fixture
def tensors_equal() -> TensorsEqual:
    """Whether dtype, shape and every bit agree; NaN equals itself."""

    def compare(one: torch.Tensor, other: torch.Tensor) -> bool:
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))

    return compare
