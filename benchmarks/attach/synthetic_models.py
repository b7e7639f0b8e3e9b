"""Creates models for benchmarks: the shapes of Llama 8B, with enough layers for the requested size.

The bytes are random, but not independent: they are slices of one random pool per process, at varying offsets.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

GIB = 1 << 30
HIDDEN, INTERMEDIATE, KV, VOCABULARY = 4096, 14336, 1024, 128256
POOL_BYTES = 64 << 20


def tensor_shapes(gib: float) -> list[tuple[str, tuple[int, ...]]]:
    """Returns names and shapes (bfloat16) of a model of at least this size."""
    layer: list[tuple[str, tuple[int, ...]]] = [
        ("input_layernorm.weight", (HIDDEN,)),
        ("self_attn.q_proj.weight", (HIDDEN, HIDDEN)),
        ("self_attn.k_proj.weight", (KV, HIDDEN)),
        ("self_attn.v_proj.weight", (KV, HIDDEN)),
        ("self_attn.o_proj.weight", (HIDDEN, HIDDEN)),
        ("post_attention_layernorm.weight", (HIDDEN,)),
        ("mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN)),
        ("mlp.up_proj.weight", (INTERMEDIATE, HIDDEN)),
        ("mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)),
    ]
    found: list[tuple[str, tuple[int, ...]]] = []
    if gib >= 4:
        found.append(("model.embed_tokens.weight", (VOCABULARY, HIDDEN)))
    size = sum(math.prod(shape) * 2 for _, shape in found)
    number = 0
    while size < gib * GIB:
        found += [(f"model.layers.{number}.{name}", shape) for name, shape in layer]
        size += sum(math.prod(shape) * 2 for _, shape in layer)
        number += 1
    return [*found, ("model.norm.weight", (HIDDEN,))]


def make_shards(folder: Path, gib: float, *, shards: int = 16, rank: int | None = None) -> int:
    """Writes a model as safetensors files, in parallel processes, and an index. Returns the bytes of its tensors.

    A rank's files differ from those of the others, and from those without a rank.
    """
    from tonnage.planning.partition import linear_partition

    folder.mkdir(parents=True, exist_ok=True)
    model = tensor_shapes(gib)
    seed = 1 if rank is None else 100 + rank
    cuts = linear_partition([math.prod(shape) * 2 for _, shape in model], shards)
    tasks, weight_map = [], {}
    for number, (first, last) in enumerate(cuts):
        name = f"model-{number + 1:05d}-of-{len(cuts):05d}.safetensors"
        if rank is not None:
            name = f"model-rank-{rank}-part-{number}.safetensors"
        tasks.append((folder / name, model[first:last], seed * 1000 + number))
        weight_map.update({key: name for key, _ in model[first:last]})
    with ProcessPoolExecutor(min(len(tasks), os.cpu_count() or 1)) as pool:
        total = sum(pool.map(_write_shard, tasks))
    if rank is None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return total


def replace_shards(folder: Path, gib: float, *, ranks: Iterable[int | None] = (None,)) -> None:
    """Writes the files of ``make_shards`` again, of the given ranks. None of their pages was ever read then."""
    shutil.rmtree(folder)
    for rank in ranks:
        make_shards(folder, gib, rank=rank)


def _write_shard(task: tuple[Path, list[tuple[str, tuple[int, ...]]], int]) -> int:
    import numpy as np

    from tonnage.format.dtypes import dtype_from_safetensors
    from tonnage.format.safetensors import ShardTensor, build_shard_header

    path, model, seed = task
    dtype = dtype_from_safetensors("BF16", where="synthetic")
    header, offsets = build_shard_header(
        [ShardTensor(name, dtype, shape, math.prod(shape) * 2) for name, shape in model], metadata={"format": "pt"}
    )
    pool = np.random.default_rng(seed).bytes(POOL_BYTES * 2)
    view = memoryview(pool)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.pwrite(descriptor, header, 0)
    written = 0
    for (_, shape), offset in zip(model, offsets, strict=True):
        size = math.prod(shape) * 2
        for start in range(0, size, POOL_BYTES):
            skip = (offset // 97 + start // 31) % POOL_BYTES
            piece = view[skip : skip + min(POOL_BYTES, size - start)]
            os.pwrite(descriptor, piece, offset + start)
        written += size
    os.close(descriptor)
    return written


def write_tensors_file(shards: Path, path: Path) -> None:
    """Writes the model of ``shards`` as one ``.tensors`` file with tensorizer."""
    from tensorizer import TensorSerializer

    from tonnage.attach import open_weights

    with open_weights(shards) as weights:
        serializer = TensorSerializer(str(path))
        serializer.write_state_dict(dict(weights))
        serializer.close()


def read_through(paths: Iterable[Path]) -> None:
    """Reads whole files.

    The first read of a tmpfs page is slow (see ``tonnage/attach/copy/read_ways.py``). Without this, the first contender
    would be measured slower than the others.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(lambda path: read_whole(path, bytearray(4 << 20)), paths))


def read_whole(path: Path, buffer: bytearray) -> int:
    """Reads a file into a buffer again and again, and returns its size."""
    size = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            size += count
    return size


def mount_tmpfs(folder: Path, *, gib: int, huge: bool) -> str:
    """Mounts a tmpfs; returns an empty string, or the error."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={gib}g" + (",huge=always" if huge else "")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tonnage", str(folder)], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else (done.stderr.strip() or f"mount exited with {done.returncode}")


def unmount(folder: Path) -> None:
    """Unmounts a folder. Does nothing if it is not mounted."""
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def copy_shards(source: Path, target: Path, gib: float) -> int:
    """Copies whole shards up to about ``gib``, without an index. Returns their bytes."""
    target.mkdir(parents=True, exist_ok=True)
    total = 0
    for path in sorted(source.glob("*.safetensors")):
        if total >= gib * GIB:
            break
        shutil.copyfile(path, target / path.name)
        total += path.stat().st_size
    return total
