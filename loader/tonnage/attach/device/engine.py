"""What a copy needs of a device, as two small protocols, and the one for the CPU's own memory.

An **engine** allocates on the device and gives each worker thread its own **queue** of asynchronous copies. The CPU's
engine makes real copies, and makes them as late as it may: code that reuses a buffer too early fails with it as it
would on a GPU, only every time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class CopyQueue(Protocol):
    """Copies of one worker thread, in order. Used by that thread alone.

    A **slot** is whatever the worker reuses: it marks the slot after the copies that read from it, and waits for the
    slot before it writes there again.
    """

    def copy(self, target: int, source: int, length: int) -> None:
        """Starts copying ``length`` bytes from host address ``source`` to device address ``target``."""

    def record_event(self, slot: int) -> None:
        """Says that all copies so far belong to ``slot`` or to slots marked before."""

    def wait(self, slot: int) -> None:
        """Returns when the copies up to the slot's last mark are done; at once if it was never marked."""

    def drain(self) -> None:
        """Returns when all copies are done."""

    def pin(self, address: int, length: int, *, read_only: bool) -> bool:
        """Makes host memory fit for fast copies; False where the device can't, and copies are slower but right."""

    def unpin(self, address: int) -> None:
        """Takes back what ``pin`` did to the memory that begins at ``address``."""

    def close(self) -> None:
        """Lets go of the queue. Nothing may be under way."""


class Engine(Protocol):
    """A device that tensors can be copied to.

    Attributes:
        device: Where ``empty`` allocates.
    """

    device: torch.device

    def start(self) -> None:
        """Gets the device ready; called once, by any thread, before all else."""

    def queue(self, slots: int, *, streams: int) -> CopyQueue:
        """Returns the calling thread's queue, with room for this many slots; for the rest see ``CopyOptions``."""

    def empty(self, size: int) -> torch.Tensor:
        """Allocates ``size`` bytes as a uint8 tensor, aligned for every dtype."""

    def synchronize(self) -> None:
        """Returns when nothing that was started before still uses memory that ``empty`` gave out since."""

    def local_cpus(self) -> set[int]:
        """Cores with the shortest way to the device; empty where all are alike."""
