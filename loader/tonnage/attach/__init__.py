"""Opens cache entries as tensors, on the CPU or a GPU. Needs PyTorch: ``pip install 'tonnage[attach]'``.

``tonnage.open`` is ``open_weights``. Importing this package does not import PyTorch; opening weights does.
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
    LoadRestarted,
    ModuleMismatch,
    NotLoadedInTime,
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
    "LoadRestarted",
    "LoadResult",
    "ModuleMismatch",
    "NotLoadedInTime",
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
    wait: bool = False,
    timeout: float | None = None,
) -> Weights:
    """Opens weights as a read-only mapping of names to tensors. No tensor data is read yet.

    The size of every file is compared with its header first. A cache entry is locked until the weights are closed, so
    that it is not evicted.

    Args:
        path: A cache entry or its ``model`` folder, a directory of safetensors or ``.tensors`` files (a safetensors
            index selects the files), or one such file.
        rank: The rank to open, if the weights are sharded by rank.
        device: The device that the tensors will be copied to, if known: copy buffers for a GPU are then prepared in
            the background.
        meta_tensors: How tensors without data are returned: ``zeros`` of their shape, as in tensorizer, or ``meta`` for
            tensors on PyTorch's meta device.
        options: How tensors are copied to devices.
        wait: Also open weights that are being loaded, or will be, by another process: as soon as their table is known.
            Tensors are then returned as their files are complete and verified; ``stream`` yields them in this order.
        timeout: With ``wait``: seconds from now, after which waiting for a load fails; None for no limit.

    Raises:
        TorchMissing: PyTorch isn't installed; also an ``ImportError``.
        PathNotFound: The path does not exist; also a ``FileNotFoundError``.
        NoTensorFiles: The path exists, but has no weights.
        RankMissing: The weights are sharded by rank, and a rank must be chosen or does not exist.
        EntryIncomplete: The entry's load is not finished, or the entry was evicted; a ``CacheDamaged``.
        EntryBeingRemoved: Another process is evicting the entry; a ``CacheInUse``.
        CacheDamaged: A file is truncated, missing or malformed.
        FormatDamaged: A ``.tensors`` file is truncated or inconsistent.
        FormatUnsupported: A file is encrypted or has an unknown version.
        NameCollision: Two files have a tensor of the same name.
        DeviceNotFound: The device does not exist.
        NotLoadedInTime: The timeout passed; also a ``TimeoutError``.
        TonnageError: With ``wait``, here or when tensors are used: the load failed. The error is the loader's own.
    """
    require_torch()
    from tonnage.attach.weights import open_path  # imports PyTorch

    return open_path(
        path,
        rank=rank,
        device=device,
        meta_tensors=meta_tensors,
        options=options or CopyOptions(),
        wait=wait,
        timeout=timeout,
    )


def require_torch() -> None:
    """Raises an error that names the package to install if PyTorch is missing.

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
