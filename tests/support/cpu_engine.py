"""The machine's own memory as a device, so that copies are tested without a GPU.

The copies are real, and each is deferred until it is waited for: code that reuses a buffer too early fails every time.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from tonnage.attach.errors import DeviceFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage.attach.device.engine import NativeQueue


class CpuQueue:
    """Copies within the machine's memory, each deferred until it is waited for."""

    def __init__(self, on_pinned: Callable[[int], None]) -> None:
        self._pending: list[tuple[int, int, int]] = []
        self._events: dict[int, int] = {}
        self._done = 0
        self._on_pinned = on_pinned
        self._lengths: dict[int, int] = {}

    def copy(self, target: int, source: int, length: int) -> None:
        self._pending.append((target, source, length))

    def record_event(self, slot: int) -> None:
        self._events[slot] = self._done + len(self._pending)

    def wait(self, slot: int) -> None:
        self._execute(self._events.get(slot, 0) - self._done)

    def drain(self) -> None:
        self._execute(len(self._pending))

    def _execute(self, count: int) -> None:
        if count <= 0:
            return
        for target, source, length in self._pending[:count]:
            ctypes.memmove(target, source, length)
        del self._pending[:count]
        self._done += count

    def pin(self, address: int, length: int, *, read_only: bool) -> bool:  # noqa: ARG002
        """Records the pinned length, so that tests can check limits."""
        self._lengths[address] = length
        self._on_pinned(length)
        return True

    def unpin(self, address: int) -> None:
        self._on_pinned(-self._lengths.pop(address))

    def close(self) -> None:
        """Fails if copies are pending: the worker must have drained them."""
        if self._pending:
            raise RuntimeError(f"{len(self._pending)} copies were never waited for")


class CpuEngine:
    """The machine's own memory as a device."""

    has_native_queue = False

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def start(self) -> None:
        pass

    def queue(self, slots: int, *, streams: int) -> CpuQueue:  # noqa: ARG002
        return CpuQueue(lambda length: None)  # noqa: ARG005

    def native_queue(self, slots: int) -> NativeQueue:
        raise NotImplementedError

    def failure(self, what: str, code: int) -> DeviceFailed:
        return DeviceFailed(f"{what} failed ({code}).")

    def empty(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def synchronize(self) -> None:
        """Does nothing: only the queues are asynchronous."""

    def device_count(self) -> int:
        return 1

    def local_cpus(self) -> set[int]:
        return set()
