"""Streaming tensors one by one, on the CPU and through the copy workers."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
import torch

from support.cpu_engine import CpuEngine
from support.models import make_tensors
from support.native_engine import HostEngine
from tonnage.attach.copy import device_copier, worker_choice
from tonnage.attach.copy_options import CopyOptions
from tonnage.attach.weights import open_path
from tonnage.errors import CacheDamaged, InvalidPlan

if TYPE_CHECKING:
    import ctypes
    from pathlib import Path

    from tonnage.attach.weights import Weights


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return make_tensors(count=12, rows=512)


@pytest.fixture(params=["Python's threads", "the compiled ring"])
def engine(request: pytest.FixtureRequest, native_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> CpuEngine:
    monkeypatch.setattr(worker_choice, "native_library", lambda: native_library)
    return HostEngine() if request.param == "the compiled ring" else CpuEngine()


@pytest.fixture
def weights(
    tmp_path: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, engine: CpuEngine
) -> Weights:
    """Weights whose copies to a device go to the machine's own memory, in groups that are smaller than the model."""
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "model.safetensors")
    monkeypatch.setattr(device_copier, "TEMPORARY_GROUP_BYTES", 1 << 20)
    monkeypatch.setattr(device_copier, "WINDOW_BYTES", 2 << 20)
    options = CopyOptions(threads=2, slot_bytes=64 << 10, ring_slot_bytes=64 << 10, direct="never")
    return open_path(
        tmp_path,
        rank=None,
        device=None,
        meta_tensors="zeros",
        options=options,
        engine_factory=lambda _: engine,
    )


def through_workers(weights: Weights) -> list[tuple[str, torch.Tensor]]:
    """Streams through the copy workers: the device's type must not be ``cpu``, and the engine allocates there."""
    records = list(weights.records.values())
    with weights._reporter("off", records) as reporter:
        found = weights._copier.iterate(records, torch.device("cpu"), reporter=reporter)
        return [(record.name, tensor) for record, tensor in found]


def test_all_tensors_arrive_and_may_be_kept(
    weights: Weights, tensors: dict[str, torch.Tensor], engine: CpuEngine
) -> None:
    found = dict(through_workers(weights))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert weights.last_copy is not None
    assert weights.last_copy.way == "ring"
    assert weights.last_copy.native is engine.has_native_queue


def test_on_the_cpu_tensors_are_views_of_the_selected_names(weights: Weights, tensors: dict[str, torch.Tensor]) -> None:
    name = next(iter(tensors))
    [(found, tensor)] = list(weights.stream(keys=[name]))
    assert found == name
    assert torch.equal(tensor, tensors[name])
    assert tensor.data_ptr() == weights[name].data_ptr()


def test_an_iterator_that_is_closed_early_stops_the_copies_and_enables_the_collector_again(
    weights: Weights, engine: CpuEngine
) -> None:
    records = list(weights.records.values())
    with weights._reporter("off", records) as reporter:
        found = weights._copier.iterate(records, torch.device("cpu"), reporter=reporter)
        next(found)
        assert gc.isenabled() is engine.has_native_queue
        found.close()
    assert gc.isenabled()


def test_a_file_that_became_shorter_is_an_error(weights: Weights) -> None:
    with weights.files[0].path.open("rb+") as file:
        file.truncate(file.seek(0, 2) // 2)
    with pytest.raises(CacheDamaged, match="ended at byte"):
        through_workers(weights)


def test_there_is_nothing_to_stream_to_the_meta_device(weights: Weights) -> None:
    with pytest.raises(InvalidPlan, match="meta device"):
        weights.stream("meta")


def test_progress_reaches_the_size_of_the_weights(weights: Weights) -> None:
    done: list[int] = []
    for _ in weights.stream(progress=lambda now, _: done.append(now)):
        pass
    assert done[-1] == weights.nbytes
