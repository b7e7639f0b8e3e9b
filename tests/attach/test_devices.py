"""Devices that do not exist or lack memory. The benchmark on GPU machines tests the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from support.cpu_engine import CpuEngine
from tonnage.attach import DeviceMemoryShort, DeviceNotFound, open_weights
from tonnage.attach.device.lookup import find_device
from tonnage.attach.progress import ProgressReporter
from tonnage.errors import InvalidPlan

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Protocol

    from support.attach_fixture_types import Attach
    from tonnage.attach import Weights

    class GpuMemory(Protocol):
        def __call__(self, *, free: int, total: int = 80 << 30, cached: int = 0) -> None: ...


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cpu:0"])
def test_the_cpu_always_exists(device: torch.device | str | int) -> None:
    assert find_device(device) == torch.device("cpu")


@pytest.mark.parametrize("device", ["qpu", "cuda:x", "", -1, 4.5])
def test_a_value_that_is_no_device_is_refused(device: str | float) -> None:
    with pytest.raises(DeviceNotFound, match="not a device"):
        find_device(device)  # type: ignore[arg-type]


@NO_GPU
@pytest.mark.parametrize("device", ["cuda", "cuda:3", 0])
def test_a_missing_gpu_is_refused_first(shard: Path, device: torch.device | str | int) -> None:
    with pytest.raises(DeviceNotFound, match="found no CUDA device"):
        open_weights(shard, device=device)
    with open_weights(shard) as weights:
        with pytest.raises(DeviceNotFound):
            weights.state_dict(device)
        with pytest.raises(DeviceNotFound):
            weights.load_into(torch.nn.Linear(2, 2), device)


@pytest.mark.parametrize("device", ["cuda:2", 5])
def test_a_gpu_beyond_the_last_is_refused_with_the_available_ones(
    monkeypatch: pytest.MonkeyPatch, device: torch.device | str | int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceNotFound, match="Available: cuda:0, cuda:1"):
        find_device(device)
    assert find_device(1) == torch.device("cuda", 1)


class NoAllocationEngine(CpuEngine):
    """Fails on every allocation."""

    def empty(self, size: int) -> torch.Tensor:
        raise AssertionError(f"{size} bytes were allocated")


@pytest.fixture
def gpu_memory(monkeypatch: pytest.MonkeyPatch) -> GpuMemory:
    """Sets what PyTorch reports for a GPU: free and total bytes, and bytes that its allocator has cached."""

    def set_memory(*, free: int, total: int = 80 << 30, cached: int = 0) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, total))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: cached + 5)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 5)

    return set_memory


def load_onto_gpu(weights: Weights, *, dtype: torch.dtype | None = None) -> None:
    """Loads all tensors onto a GPU that does not exist."""
    records = list(weights.records.values())
    with ProgressReporter("off", weights.nbytes, description="test") as reporter:
        weights._copier.load(records, torch.device("cuda", 0), dtype=dtype, reporter=reporter)


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_too_little_memory_is_reported_with_numbers_before_anything_is_allocated(
    attach: Attach, shard: Path, gpu_memory: GpuMemory, dtype: torch.dtype | None
) -> None:
    weights = attach(shard, engine=NoAllocationEngine())
    gpu_memory(free=200_000)
    with pytest.raises(DeviceMemoryShort) as caught:
        load_onto_gpu(weights, dtype=dtype)
    text = str(caught.value)
    assert f"These {len(weights):,} tensors need" in text
    assert "cuda:0" in text
    assert "(200,000 bytes) free of 80.00 GiB" in text
    assert caught.value.remedy


def test_memory_cached_by_the_allocator_counts_as_free(attach: Attach, shard: Path, gpu_memory: GpuMemory) -> None:
    weights = attach(shard, engine=NoAllocationEngine())
    gpu_memory(free=weights.nbytes // 2, cached=weights.nbytes)
    with pytest.raises(AssertionError, match="were allocated"):
        load_onto_gpu(weights)


def test_a_small_load_that_is_converted_needs_little_more_than_its_results(
    attach: Attach, shard: Path, gpu_memory: GpuMemory
) -> None:
    weights = attach(shard, engine=NoAllocationEngine())
    gpu_memory(free=6 * weights.nbytes)  # the stored tensors, and at most four times as much as float64
    with pytest.raises(AssertionError, match="were allocated"):
        load_onto_gpu(weights, dtype=torch.float64)


def test_loading_a_module_in_place_needs_memory_for_the_buffers_only(
    attach: Attach, shard: Path, gpu_memory: GpuMemory
) -> None:
    weights = attach(shard, engine=NoAllocationEngine())
    records = list(weights.records.values())
    gpu_memory(free=1000)
    with (
        ProgressReporter("off", weights.nbytes, description="test") as reporter,
        pytest.raises(DeviceMemoryShort) as caught,
    ):
        weights._copier.stream(records, torch.device("cuda", 0), lambda *_: None, reporter=reporter)
    assert "The buffers for this load need" in str(caught.value)
    assert "(1,000 bytes) free" in str(caught.value)


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_other_missing_devices_are_refused(device: str) -> None:
    with pytest.raises(DeviceNotFound, match=device):
        find_device(device)


@NO_GPU
def test_without_a_driver_pytorchs_own_copy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from tonnage.attach.device import lookup

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert lookup.engine_for(torch.device("cuda", 0)) is None
    assert lookup.engine_for(torch.device("mps")) is None


def test_a_module_can_not_be_loaded_onto_the_meta_device(shard: Path) -> None:
    with open_weights(shard) as weights, pytest.raises(InvalidPlan, match="holds no data"):
        weights.load_into(torch.nn.Linear(2, 2), "meta")
