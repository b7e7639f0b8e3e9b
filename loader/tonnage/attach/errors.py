"""What can go wrong between a cache entry and tensors, beyond the errors that all of Tonnage shares.

Each class keeps the reason of the one it derives from and says, in its own remedy, what to do in this case.
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
)


class TorchMissing(InvalidPlan, ImportError):
    """PyTorch is not installed here."""

    remedy = "pip install 'tonnage[attach]'"


class PathNotFound(ObjectNotFound, FileNotFoundError):
    """There is nothing at the path that was to be opened."""

    remedy = "Check the path; in a pod, TONNAGE_MODEL_PATH holds it. `tonnage ls` lists the entries of a cache."


class RankMissing(InvalidPlan):
    """The weights are one set for each rank, and none, or one that isn't there, was asked for."""

    remedy = "Pass rank=, one of those that the message lists."


class KeyNotFound(InvalidPlan, KeyError):
    """No tensor has this name."""

    remedy = "Look at weights.keys(); the nearest names are in the message."


class WeightsClosed(InvalidPlan, ValueError):
    """The weights were closed; tensors taken before stay good."""

    remedy = "Open the path again, or use the weights before their context ends."


class ModuleMismatch(InvalidPlan):
    """Module and weights disagree. The message lists every disagreement.

    Attributes:
        missing: Names that the module has and the weights have not.
        unexpected: Names that the weights have and the module has not.
        differing: One sentence for each tensor that both have in different form.
    """

    remedy = "Build the module from the config that belongs to these weights, pass dtype= or use strict=False."

    def __init__(
        self, message: str, *, missing: tuple[str, ...], unexpected: tuple[str, ...], differing: tuple[str, ...]
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.unexpected = unexpected
        self.differing = differing


class DeviceNotFound(InvalidPlan):
    """The device does not exist on this machine, or this PyTorch can't use it."""

    remedy = "Use a device that the message lists; CUDA_VISIBLE_DEVICES and the pod's GPU limit decide what is there."


class DeviceMemoryShort(InsufficientSpace):
    """The device has too little free memory for what was asked."""

    remedy = "Free memory on the device, load fewer tensors (keys=, filter=, rank=) or use a device with more."


class DeviceFailed(InternalError):
    """The GPU's driver refused an operation."""

    remedy = "Look at `nvidia-smi` and the kernel's log: an earlier error of this process or a fault of the GPU."


class DtypeUnknown(DtypeUnsupported):
    """The file has a dtype that this PyTorch doesn't know."""

    remedy = "Install a newer PyTorch, or leave the tensor out with keys= or filter=."


class EntryIncomplete(CacheDamaged):
    """The entry was never finished, or was emptied."""

    remedy = "Wait for the loader that fills it, or load it again."


class EntryBeingRemoved(CacheInUse):
    """Somebody is emptying the entry right now."""

    remedy = "Load it again."
