"""What a copy needs of a device, as two small protocols, and the one for the CPU's own memory.

An **engine** allocates on the device and gives each worker thread its own **queue** of asynchronous copies. The CPU's
engine makes real copies, and makes them as late as it may: code that reuses a buffer too early fails with it as it
would on a GPU, only every time.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


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
        name: What reports call the way of copying.
        device: Where ``empty`` allocates.
    """

    name: str
    device: torch.device

    def start(self) -> None:
        """Gets the device ready; called once, by any thread, before all else."""

    def queue(self, slots: int, *, sleep: bool, streams: int) -> CopyQueue:
        """Returns the calling thread's queue, with room for this many slots; for the rest see ``CopyOptions``."""

    def empty(self, size: int) -> torch.Tensor:
        """Allocates ``size`` bytes as a uint8 tensor, aligned for every dtype."""

    def synchronize(self) -> None:
        """Returns when nothing that was started before still uses memory that ``empty`` gave out since."""

    def local_cpus(self) -> set[int]:
        """Cores with the shortest way to the device; empty where all are alike."""


class CpuQueue:
    """Copies within the machine's memory, made when somebody waits for them."""

    def __init__(self, on_pinned: Callable[[int], None]) -> None:
        self._pending: list[tuple[int, int, int]] = []
        self._events: dict[int, int] = {}
        self._done = 0
        self._on_pinned = on_pinned
        self._lengths: dict[int, int] = {}

    def copy(self, target: int, source: int, length: int) -> None:
        """Notes the copy."""
        self._pending.append((target, source, length))

    def record_event(self, slot: int) -> None:
        """Remembers how many copies were noted so far."""
        self._events[slot] = self._done + len(self._pending)

    def wait(self, slot: int) -> None:
        """Makes all copies up to the slot's mark."""
        self._execute(self._events.get(slot, 0) - self._done)

    def drain(self) -> None:
        """Makes all copies."""
        self._execute(len(self._pending))

    def _execute(self, count: int) -> None:
        if count <= 0:
            return
        for target, source, length in self._pending[:count]:
            ctypes.memmove(target, source, length)
        del self._pending[:count]
        self._done += count

    def pin(self, address: int, length: int, *, read_only: bool) -> bool:  # noqa: ARG002  # nothing to do about it
        """Counts, so that limits can be checked without a GPU."""
        self._lengths[address] = length
        self._on_pinned(length)
        return True

    def unpin(self, address: int) -> None:
        """Counts."""
        self._on_pinned(-self._lengths.pop(address))

    def close(self) -> None:
        """Refuses to lose copies: whoever closes has drained."""
        if self._pending:
            raise RuntimeError(f"{len(self._pending)} copies were never waited for")


class CpuEngine:
    """The machine's own memory as a device: for tests, and to measure how fast a cache can be read."""

    name = "cpu"

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def start(self) -> None:
        """Nothing needs to be got ready."""

    def queue(self, slots: int, *, sleep: bool, streams: int) -> CopyQueue:  # noqa: ARG002
        """Returns a queue of deferred copies."""
        return CpuQueue(lambda length: None)  # noqa: ARG005

    def empty(self, size: int) -> torch.Tensor:
        """Allocates ordinary memory."""
        return torch.empty(size, dtype=torch.uint8)

    def synchronize(self) -> None:
        """Nothing is asynchronous beyond the queues."""

    def local_cpus(self) -> set[int]:
        """All cores are alike."""
        return set()
