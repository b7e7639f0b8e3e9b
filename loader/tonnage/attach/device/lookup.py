"""Which device is meant, whether it is there, and whether it has room."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tonnage.attach.errors import DeviceMemoryShort, DeviceNotFound

if TYPE_CHECKING:
    from tonnage.attach.device.engine import Engine

DeviceLike = torch.device | str | int


def find_device(device: DeviceLike) -> torch.device:
    """Returns the device with its index.

    Args:
        device: As PyTorch takes them; a number is a CUDA device.

    Raises:
        DeviceNotFound: It isn't there, or this PyTorch can't use it.
    """
    try:
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise DeviceNotFound(f"{device!r} is not a device that PyTorch {torch.__version__} knows.") from error
    if found.type in {"cpu", "meta"}:
        return torch.device(found.type)
    if found.type == "cuda":
        return _find_cuda(found)
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DeviceNotFound(f"The device {found} can't be used here: {reason}") from error
    return found


def _find_cuda(device: torch.device) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise DeviceNotFound(
            f"There is no CUDA device here that PyTorch {torch.__version__} (CUDA: {torch.version.cuda}) can use."
        )
    named: int | None = device.index  # PyTorch's own annotation leaves the None out
    index = torch.cuda.current_device() if named is None else named
    if not 0 <= index < count:
        known = ", ".join(f"cuda:{number}" for number in range(count))
        raise DeviceNotFound(f"There is no device cuda:{index} here; there is {known}.")
    return torch.device("cuda", index)


def engine_for(device: torch.device) -> Engine | None:
    """Returns the engine for a device, or None where PyTorch's own copy is the only way."""
    if device.type != "cuda" or _is_rocm():
        return None
    from tonnage.attach.device.cuda import CudaEngine  # only where there is a GPU

    try:
        return CudaEngine(device)
    except OSError:
        return None


def _is_rocm() -> bool:
    return torch.version.cuda is None


def check_free_memory(device: torch.device, needed: int, *, label: str) -> None:
    """Refuses a load that the device has no memory for, before anything is copied.

    What PyTorch's allocator holds but doesn't use counts as free.

    Args:
        device: Any; only CUDA devices say how much they have.
        needed: Bytes.
        label: What the error says they are for.

    Raises:
        DeviceMemoryShort: With needed, free and total bytes.
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
