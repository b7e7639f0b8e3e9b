"""The machine's own memory as a device, so that copies are tested without a GPU.

The copies are real, and each is deferred until it is waited for: code that reuses a buffer too early fails every time.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


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

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def start(self) -> None:
        """Nothing needs to be got ready."""

    def queue(self, slots: int, *, streams: int) -> CpuQueue:  # noqa: ARG002
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
