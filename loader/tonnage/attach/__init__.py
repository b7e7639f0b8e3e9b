"""From a cache entry to tensors, on the CPU or a GPU. Needs PyTorch: ``pip install 'tonnage[attach]'``.

``open_weights`` is what ``tonnage.open`` is. Importing this package imports no PyTorch; opening weights does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tonnage.attach.copy_options import CopyOptions, CopyStats
from tonnage.attach.errors import (
    DeviceFailed,
    DeviceMemoryShort,
    DeviceNotFound,
    DtypeUnknown,
    EntryBeingRemoved,
    EntryIncomplete,
    KeyNotFound,
    ModuleMismatch,
    PathNotFound,
    RankMissing,
    TorchMissing,
    WeightsClosed,
)

if TYPE_CHECKING:
    import os

    import torch

    from tonnage.attach.files.tensor_info import TensorInfo
    from tonnage.attach.module_loading import LoadResult
    from tonnage.attach.weights import Weights

__all__ = [
    "CopyOptions",
    "CopyStats",
    "DeviceFailed",
    "DeviceMemoryShort",
    "DeviceNotFound",
    "DtypeUnknown",
    "EntryBeingRemoved",
    "EntryIncomplete",
    "KeyNotFound",
    "LoadResult",
    "ModuleMismatch",
    "PathNotFound",
    "RankMissing",
    "TensorInfo",
    "TorchMissing",
    "Weights",
    "WeightsClosed",
    "open_weights",
    "require_torch",
]


def open_weights(
    path: str | os.PathLike[str],
    *,
    rank: int | None = None,
    device: torch.device | str | int | None = None,
    meta_tensors: Literal["zeros", "meta"] = "zeros",
    options: CopyOptions | None = None,
) -> Weights:
    """Opens weights: a read-only mapping of names to tensors, none of which is read yet.

    Every file is checked against its header first, and a cache entry is held in use until the weights are closed.

    Args:
        path: A cache entry or its ``model`` folder, a directory of safetensors or ``.tensors`` files (an index is
            honored), or one such file.
        rank: Which rank's tensors, where the weights are one set for each rank.
        device: Where they will go, if that is known: a GPU's copy buffers are then made ready meanwhile.
        meta_tensors: What tensors without data become: ``zeros`` of their shape, as tensorizer makes them, or ``meta``
            to leave them on PyTorch's meta device.
        options: How copies to devices are made.

    Raises:
        TorchMissing: PyTorch isn't installed; also an ``ImportError``.
        PathNotFound: There is nothing at the path; also a ``FileNotFoundError``.
        NoTensorFiles: What is there holds no weights.
        RankMissing: The weights are one set for each rank, and this one isn't among them.
        EntryIncomplete: The entry was never finished, or was emptied; a ``CacheDamaged``.
        EntryBeingRemoved: Somebody is emptying the entry; a ``CacheInUse``.
        CacheDamaged: A file is cut off, missing, or not what it should be.
        FormatDamaged: A ``.tensors`` file contradicts itself.
        FormatUnsupported: A file is encrypted or of a version unknown here.
        NameCollision: Two files hold a tensor of the same name.
        DeviceNotFound: There is no such device.
    """
    require_torch()
    from tonnage.attach.weights import open_path  # imports PyTorch

    return open_path(path, rank=rank, device=device, meta_tensors=meta_tensors, options=options or CopyOptions())


def require_torch() -> None:
    """Says what to install where PyTorch isn't.

    Raises:
        TorchMissing: PyTorch isn't installed.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise TorchMissing("Attaching weights needs PyTorch: pip install 'tonnage[attach]'") from error


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in {"Weights", "LoadResult", "TensorInfo"}:
        require_torch()
        from tonnage.attach import module_loading, weights
        from tonnage.attach.files import tensor_info

        return {
            "Weights": weights.Weights,
            "LoadResult": module_loading.LoadResult,
            "TensorInfo": tensor_info.TensorInfo,
        }[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
