"""Closing weights, and eviction while they are open."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tonnage.attach import WeightsClosed, open_weights
from tonnage.cache import commit
from tonnage.errors import TonnageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from support.attach_fixture_types import MakeEntry, TensorsEqual
    from support.tensors_corpus import CorpusFile


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_tensors_outlive_their_weights(
    shard: Path, tensors: dict[str, torch.Tensor], tensors_equal: TensorsEqual
) -> None:
    with open_weights(shard) as weights:
        embed = weights["embed"]
    del weights
    gc.collect()
    assert tensors_equal(embed, tensors["embed"])


def test_closed_weights_raise_an_error(shard: Path) -> None:
    weights = open_weights(shard)
    weights.close()
    weights.close()
    assert weights.closed
    uses: tuple[Callable[[], object], ...] = (
        lambda: weights["embed"],
        weights.state_dict,
        weights.nested,
    )
    for use in uses:
        with pytest.raises(WeightsClosed, match="were closed"):
            use()


def test_collected_weights_close_their_files(shard: Path) -> None:
    before = descriptors()
    weights = open_weights(shard)
    weights["embed"]
    assert descriptors() > before
    del weights
    gc.collect()
    assert descriptors() == before


def test_a_failed_open_leaves_no_file_open(
    corpus: dict[str, CorpusFile], make_entry: MakeEntry, tmp_path: Path
) -> None:
    entry = make_entry([corpus["mixed-large"].path], segment_size=1 << 20)
    next(entry.model_dir.glob("*-of-*.safetensors")).unlink()
    before = descriptors()
    for path in (entry.path, tmp_path / "gone", corpus["encrypted-module"].path):
        with pytest.raises(TonnageError):
            open_weights(path)
    assert descriptors() == before


def test_an_open_entry_can_not_be_evicted(corpus: dict[str, CorpusFile], make_entry: MakeEntry) -> None:
    entry = make_entry([corpus["state-dict"].path])
    weights = open_weights(entry.path)
    assert entry.try_acquire_exclusive_use_lock() is None
    weights.close()
    lock = entry.try_acquire_exclusive_use_lock()
    assert lock is not None
    lock.release()


def test_tensors_survive_the_eviction_of_a_closed_entry(
    corpus: dict[str, CorpusFile], make_entry: MakeEntry, tensors_equal: TensorsEqual
) -> None:
    file = corpus["mixed-large"]
    entry = make_entry([file.path])
    with open_weights(entry.path) as weights:
        state = weights.state_dict()
    lock = entry.try_acquire_exclusive_use_lock()
    assert lock is not None
    commit.clear(entry)
    lock.release()
    assert all(tensors_equal(state[name], tensor) for name, tensor in file.by_flat_name.items())


def test_a_process_that_uses_tensors_after_everything_is_closed_does_not_crash(shard: Path) -> None:
    program = """
import gc, sys
sys.path.insert(0, sys.argv[2])
import tonnage
with tonnage.open(sys.argv[1]) as weights:
    state = weights.state_dict()
    views = [tensor.flatten()[1:] for tensor in state.values() if tensor.numel() > 1]
del weights, state
gc.collect()
print(sum(float(view.to(dtype=view.dtype).abs().float().nan_to_num().sum()) for view in views) > 0)
"""
    loader = next(path for path in sys.path if path.endswith("loader"))
    done = subprocess.run([sys.executable, "-c", program, shard, loader], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_a_program_that_never_closes_its_weights_still_ends(shard: Path) -> None:
    program = """
import sys
sys.path[:0] = sys.argv[2:]
import torch
from support.cpu_engine import CpuEngine
from tonnage.attach import CopyOptions
from tonnage.attach.weights import open_path
options = dict(rank=None, device=None, meta_tensors="zeros", options=CopyOptions())
weights = open_path(sys.argv[1], engine_factory=lambda _: CpuEngine(), **options)
weights._copier.warm_up(torch.device("cpu"))
print("done", flush=True)
"""
    loader = next(path for path in sys.path if path.endswith("loader"))
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program, shard, loader, tests], capture_output=True, text=True, check=True, timeout=40
    )
    assert done.stdout.strip() == "done"
