"""Finds devices, their engines and their free memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tonnage.attach.device.cuda import CudaEngine
from tonnage.attach.errors import DeviceMemoryShort, DeviceNotFound

if TYPE_CHECKING:
    from tonnage.attach.device.engine import Engine

DeviceLike = torch.device | str | int


def find_device(device: DeviceLike) -> torch.device:
    """Returns the device, a CUDA device with its index.

    Args:
        device: As in ``torch.device``; a number is a CUDA device.

    Raises:
        DeviceNotFound: The device does not exist, or this PyTorch version can't use it.
    """
    try:
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise DeviceNotFound(f"{device!r} is not a device of PyTorch {torch.__version__}.") from error
    if found.type in {"cpu", "meta"}:
        return torch.device(found.type)
    if found.type == "cuda":
        return _find_cuda(found)
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DeviceNotFound(f"The device {found} can't be used: {reason}") from error
    return found


def _find_cuda(device: torch.device) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise DeviceNotFound(f"PyTorch {torch.__version__} (CUDA: {torch.version.cuda}) found no CUDA device.")
    named: int | None = device.index  # PyTorch's own annotation omits None
    index = torch.cuda.current_device() if named is None else named
    if not 0 <= index < count:
        known = ", ".join(f"cuda:{number}" for number in range(count))
        raise DeviceNotFound(f"The device cuda:{index} does not exist. Available: {known}.")
    return torch.device("cuda", index)


def engine_for(device: torch.device) -> Engine | None:
    """Returns the engine for a device, or None if only PyTorch's own copies are possible."""
    if device.type != "cuda" or _is_rocm():
        return None
    try:
        return CudaEngine(device)
    except OSError:
        return None


def _is_rocm() -> bool:
    return torch.version.cuda is None


def check_free_memory(device: torch.device, needed: int, *, label: str) -> None:
    """Raises an error if a device has too little free memory, before anything is copied.

    Memory that PyTorch's allocator has cached counts as free.

    Args:
        device: The device. Only CUDA devices are checked.
        needed: Bytes that will be allocated.
        label: Subject of the error message: what the memory is for, in the plural.

    Raises:
        DeviceMemoryShort: The message has the needed, free and total bytes.
    """
    if device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if needed > free + cached:
        raise DeviceMemoryShort(
            f"{label} need {_size(needed)} on {device}, which has {_size(free + cached)} free of {_size(total)}."
        )


def _size(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB ({size:,} bytes)"
