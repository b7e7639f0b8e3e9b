"""Devices that aren't there. What happens on those that are, is for the benchmark on GPU machines to show."""

from __future__ import annotations

import pytest
import torch

from tonnage.attach import DeviceNotFound, open_weights
from tonnage.attach.devices import find_device
from tonnage.errors import InvalidPlan

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cpu:0"])
def test_the_cpu_is_always_there(device):
    assert find_device(device) == torch.device("cpu")


@pytest.mark.parametrize("device", ["qpu", "cuda:x", "", -1, 4.5])
def test_what_is_no_device_is_refused(device):
    with pytest.raises(DeviceNotFound, match="not a device"):
        find_device(device)


@NO_GPU
@pytest.mark.parametrize("device", ["cuda", "cuda:3", 0])
def test_a_gpu_that_is_not_there_is_refused_before_anything_happens(shard, device):
    with pytest.raises(DeviceNotFound, match="no CUDA device here"):
        open_weights(shard, device=device)
    with open_weights(shard) as weights:
        with pytest.raises(DeviceNotFound):
            weights.state_dict(device)
        with pytest.raises(DeviceNotFound):
            weights.load_into(torch.nn.Linear(2, 2), device)


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_other_devices_that_are_not_there_are_refused(device):
    with pytest.raises(DeviceNotFound, match=device):
        find_device(device)


@NO_GPU
def test_a_driver_that_is_missing_leaves_pytorchs_own_copy(monkeypatch):
    from tonnage.attach import devices

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert devices.engine_for(torch.device("cuda", 0)) is None
    assert devices.engine_for(torch.device("mps")) is None


def test_a_module_can_not_be_loaded_onto_the_meta_device(shard):
    with open_weights(shard) as weights, pytest.raises(InvalidPlan, match="holds no data"):
        weights.load_into(torch.nn.Linear(2, 2), "meta")
