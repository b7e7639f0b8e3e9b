"""Creates tensors from ``TensorInfo``: views of mapped files and of device allocations, and zeros."""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING

import torch

from tonnage.attach.errors import DeviceMemoryShort, DtypeUnknown
from tonnage.attach.files.source_file import MAP_NORESERVE
from tonnage.format.tensor_names import short_repr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.attach.files.source_file import SourceFile
    from tonnage.attach.files.tensor_info import TensorInfo


def torch_dtype(record: TensorInfo) -> torch.dtype:
    """Returns the PyTorch dtype of a tensor.

    Raises:
        DtypeUnknown: This PyTorch version has no dtype of that name, or one with another size.
    """
    dtype = getattr(torch, record.dtype, None)
    if not isinstance(dtype, torch.dtype) or dtype.itemsize != record.item_size:
        raise DtypeUnknown(
            f"The tensor {short_repr(record.name)} has the dtype {record.dtype} ({record.item_size} bytes), which "
            f"PyTorch {torch.__version__} does not have."
        )
    return dtype


def nbytes(record: TensorInfo) -> int:
    """Returns the bytes of a tensor in memory; for a meta tensor, those of its zeros."""
    return math.prod(record.shape) * record.item_size


def strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the strides of a contiguous tensor, in elements."""
    found: list[int] = []
    step = 1
    for dimension in reversed(shape):
        found.append(step)
        step *= max(dimension, 1)
    return tuple(reversed(found))


def tensor_without_data(record: TensorInfo, device: torch.device | str, *, meta_tensors: str) -> torch.Tensor:
    """Creates a tensor that has no data in the file: an empty tensor, or zeros for a meta tensor.

    Args:
        record: A tensor whose ``length`` is 0.
        device: The new tensor's device.
        meta_tensors: ``zeros``, or ``meta`` to keep meta tensors on the meta device.
    """
    dtype = torch_dtype(record)
    if record.is_meta and meta_tensors == "meta":
        device = "meta"
    # Bytes first: some dtypes can't be filled, and complex32 warns.
    raw = _zeros(nbytes(record), device, record)
    return raw.view(dtype).as_strided(record.shape, strides(record.shape))


def _zeros(size: int, device: torch.device | str, record: TensorInfo) -> torch.Tensor:
    """Returns zeros. On the CPU, pages are allocated on access, because a small file can declare any shape."""
    if torch.device(device).type != "cpu" or size < mmap.PAGESIZE:
        return torch.zeros(size, dtype=torch.uint8, device=device)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except (OSError, OverflowError, ValueError) as error:
        raise DeviceMemoryShort(
            f"The meta tensor {short_repr(record.name)} has the shape {record.shape}: {size:,} bytes of zeros can't be "
            "allocated."
        ) from error
    return torch.frombuffer(memory, dtype=torch.uint8)


def cpu_view(record: TensorInfo, file: SourceFile) -> torch.Tensor:
    """Returns the tensor as a view of the file's mapping, aligned or not. The tensor keeps the mapping alive."""
    dtype = torch_dtype(record)
    count = record.length // record.item_size
    return torch.frombuffer(file.mapping(), dtype=dtype, count=count, offset=record.offset).view(record.shape)


def group_view(base: torch.Tensor, record: TensorInfo, offset: int) -> torch.Tensor:
    """Returns the tensor at byte ``offset`` of a group's allocation (a uint8 tensor)."""
    typed = base.view(torch_dtype(record))
    return typed.as_strided(record.shape, strides(record.shape), offset // record.item_size)
