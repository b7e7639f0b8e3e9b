"""Errors specific to attach.

Each class has the reason of its base class, and its own remedy.
"""

from __future__ import annotations

from tonnage.errors import (
    CacheDamaged,
    CacheInUse,
    DtypeUnsupported,
    InsufficientSpace,
    InternalError,
    InvalidPlan,
    ObjectNotFound,
    Timeout,
)


class TorchMissing(InvalidPlan, ImportError):
    """PyTorch is not installed."""

    remedy = "pip install 'tonnage[attach]'"


class PathNotFound(ObjectNotFound, FileNotFoundError):
    """The path does not exist."""

    remedy = "Check the path; in a pod, TONNAGE_MODEL_PATH holds it. `tonnage ls` lists the entries of a cache."


class RankMissing(InvalidPlan):
    """The weights are sharded by rank, and no rank was given, or one that does not exist."""

    remedy = "Pass one of the ranks that the message lists as rank=."


class KeyNotFound(InvalidPlan, KeyError):
    """No tensor has this name."""

    remedy = "Check weights.keys(); the message has the most similar names."


class WeightsClosed(InvalidPlan, ValueError):
    """The weights were closed. Tensors returned before that stay valid."""

    remedy = "Open the path again, or use the weights before their context ends."


class ModuleMismatch(InvalidPlan):
    """Module and weights do not match. The message lists the mismatches.

    Attributes:
        missing: Names that only the module has.
        unexpected: Names that only the weights have.
        differing: A description of each tensor that differs in shape or dtype, or between tied names.
    """

    remedy = "Build the module from the config of these weights, pass dtype=, or use strict=False."

    def __init__(
        self, message: str, *, missing: tuple[str, ...], unexpected: tuple[str, ...], differing: tuple[str, ...]
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.unexpected = unexpected
        self.differing = differing


class DeviceNotFound(InvalidPlan):
    """The device does not exist on this machine, or this PyTorch version can't use it."""

    remedy = "Use an available device; for GPUs, check CUDA_VISIBLE_DEVICES and the pod's GPU limit."


class DeviceMemoryShort(InsufficientSpace):
    """The device has too little free memory."""

    remedy = "Free memory on the device, load fewer tensors (keys=, filter=, rank=) or use a device with more memory."


class DeviceFailed(InternalError):
    """The GPU's driver returned an error."""

    remedy = "Check `nvidia-smi` and the kernel's log for GPU faults, and this process for earlier CUDA errors."


class DtypeUnknown(DtypeUnsupported):
    """The file has a dtype that this PyTorch version does not have."""

    remedy = "Install a newer PyTorch version, or omit the tensor with keys= or filter=."


class EntryIncomplete(CacheDamaged):
    """The entry's load is not finished, or the entry was evicted."""

    remedy = "Wait for the load to finish, or load the entry again."


class EntryBeingRemoved(CacheInUse):
    """Another process is evicting the entry."""

    remedy = "Load the entry again."


class NotLoadedInTime(Timeout, TimeoutError):
    """The weights were not loaded before the timeout passed. The load goes on."""

    remedy = "See what the loader does: its log, its report, or `tonnage ls`; or pass a longer timeout=."


class LoadRestarted(CacheInUse):
    """The load was started over with other files, such as shards of another size. Tensors read before stay valid."""

    remedy = "Open the path again."
