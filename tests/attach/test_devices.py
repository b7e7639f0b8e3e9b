"""Devices that aren't there, and memory that isn't enough. Which device is found on a GPU is for the benchmark to show."""

from __future__ import annotations

import pytest
import torch

from tonnage.attach import DeviceFailed, DeviceNotFound, open_weights
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


def test_a_driver_that_is_missing_is_an_os_error_for_the_caller_to_handle():
    from tonnage.attach.cuda import Driver

    try:
        driver = Driver()
    except OSError as error:
        assert "libcuda" in str(error)
    else:
        with pytest.raises(DeviceFailed):
            driver.call("cuStreamSynchronize", 1)


def test_a_module_can_not_be_loaded_onto_the_meta_device(shard):
    with open_weights(shard) as weights, pytest.raises(InvalidPlan, match="holds no data"):
        weights.load_into(torch.nn.Linear(2, 2), "meta")
