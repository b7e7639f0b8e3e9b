"""The protocols of a device that tensors are copied to.

An **engine** allocates on the device and creates a **queue** of asynchronous copies for each worker thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import ctypes

    import torch

    from tonnage.attach.errors import DeviceFailed
    from tonnage.attach.native.library import Device


class CopyQueue(Protocol):
    """Asynchronous copies of one worker thread, in order. Not thread-safe.

    A **slot** is a buffer that the worker reuses: it records an event for the slot after the copies that read from it,
    and waits for that event before it writes to the buffer again.
    """

    def copy(self, target: int, source: int, length: int) -> None:
        """Starts copying ``length`` bytes from host address ``source`` to device address ``target``."""

    def record_event(self, slot: int) -> None:
        """Records the slot's event after all copies that were started so far."""

    def wait(self, slot: int) -> None:
        """Waits for the slot's last event; returns immediately if none was recorded."""

    def drain(self) -> None:
        """Waits for all copies."""

    def pin(self, address: int, length: int, *, read_only: bool) -> bool:
        """Pins host memory for fast copies; False if that is not possible: copies then work, but are slower."""

    def unpin(self, address: int) -> None:
        """Unpins the memory that was pinned at ``address``."""

    def close(self) -> None:
        """Releases the queue. No copy may be in progress."""


class NativeQueue(Protocol):
    """The driver's functions and handles, for the threads of the compiled ring."""

    def device(self, library: ctypes.CDLL) -> Device:
        """Returns addresses of the functions that copy, record an event, wait for one and pin, and their handles."""

    def event(self, slot: int) -> int:
        """Returns the handle of the slot's event."""

    def close(self) -> None:
        """Releases the handles. No copy may be in progress."""


class Engine(Protocol):
    """A device that tensors can be copied to.

    Attributes:
        device: The device that ``empty`` allocates on.
        has_native_queue: Whether ``native_queue`` is possible, for copies by the compiled ring.
    """

    device: torch.device
    has_native_queue: bool

    def start(self) -> None:
        """Initializes the device for the calling thread; each thread calls it before ``queue``."""

    def queue(self, slots: int, *, streams: int) -> CopyQueue:
        """Returns a queue for the calling thread, with this number of slots; ``streams`` as in ``CopyOptions``."""

    def native_queue(self, slots: int) -> NativeQueue:
        """Returns a queue for the compiled ring; only if ``has_native_queue``."""

    def failure(self, what: str, code: int) -> DeviceFailed:
        """Returns an exception for an error code of a function of the native queue."""

    def empty(self, size: int) -> torch.Tensor:
        """Allocates ``size`` bytes as a uint8 tensor, aligned for every dtype."""

    def synchronize(self) -> None:
        """Waits until no earlier operation uses memory that ``empty`` has returned."""

    def device_count(self) -> int:
        """Returns the number of such devices that processes of this host may copy to at once."""

    def local_cpus(self) -> set[int]:
        """Returns the cores on the device's NUMA node; empty if there is no difference between cores."""
