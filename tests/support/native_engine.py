"""The machine's own memory as a device of the compiled ring."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

from support.cpu_engine import CpuEngine
from tonnage.attach.native.library import Device, function_address

if TYPE_CHECKING:
    from collections.abc import Callable

Copy = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_Addresses, _Sizes = ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_size_t)
CopyBatch = ctypes.CFUNCTYPE(
    ctypes.c_int,
    *(_Addresses, _Addresses, _Sizes, ctypes.c_size_t),
    *(ctypes.c_void_p, _Sizes, ctypes.c_size_t, _Sizes, ctypes.c_void_p),
)
Record = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
OfEvent = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
Pin = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
Unpin = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)


class HostQueue:
    """Copies with the library's own functions; ``copy`` replaces that of the copy, to let it fail."""

    def __init__(
        self, on_pinned: Callable[[int], None], copy: Callable[..., int] | None = None, *, pins: bool = True
    ) -> None:
        self._on_pinned = on_pinned
        self._pins = pins
        self._lengths: dict[int, int] = {}
        self._copy = None if copy is None else Copy(copy)
        self._pin_function, self._unpin_function = Pin(self._pin), Unpin(self._unpin)

    def device(self, library: ctypes.CDLL) -> Device:
        address = function_address(library, "ring_host_copy")
        if self._copy is not None:
            address = ctypes.cast(self._copy, ctypes.c_void_p).value or 0
        return Device(
            copy=address,
            copy_batch=None if self._copy is not None else function_address(library, "ring_host_copy_batch"),
            record=function_address(library, "ring_host_record"),
            query=function_address(library, "ring_host_query"),
            synchronize=function_address(library, "ring_host_synchronize"),
            pin=ctypes.cast(self._pin_function, ctypes.c_void_p),
            unpin=ctypes.cast(self._unpin_function, ctypes.c_void_p),
        )

    def event(self, slot: int) -> int:  # noqa: ARG002
        return 0

    def _pin(self, address: int, length: int, flags: int) -> int:  # noqa: ARG002
        if not self._pins:
            return 1
        self._lengths[address] = length
        self._on_pinned(length)
        return 0

    def _unpin(self, address: int) -> int:
        self._on_pinned(-self._lengths.pop(address))
        return 0

    def close(self) -> None:
        pass


NOT_READY = 600
"""CUDA_ERROR_NOT_READY."""
NOT_SUPPORTED = 801
"""CUDA_ERROR_NOT_SUPPORTED."""


class LateQueue(HostQueue):
    """Makes copies as late as a device may: when a thread waits for their event, or ``copies_a_query`` when one asks.

    Attributes:
        batches: How many copies each batch had.
        refused: How many batches it refused.
    """

    def __init__(self, *, copies_a_query: int = 1, has_batches: bool = True, supports_batches: bool = True) -> None:
        super().__init__(lambda length: None)  # noqa: ARG005
        self.batches: list[int] = []
        self.refused = 0
        self._copies_a_query = copies_a_query
        self._supports_batches = supports_batches
        self._lock = threading.Lock()
        self._started: list[tuple[int, int, int]] = []
        self._ended = 0
        self._recorded: dict[int, int] = {}
        self._functions = {
            "copy": Copy(self._start),
            "record": Record(self._record),
            "query": OfEvent(self._query),
            "synchronize": OfEvent(self._synchronize),
        } | ({"copy_batch": CopyBatch(self._start_batch)} if has_batches else {})

    def device(self, library: ctypes.CDLL) -> Device:
        device = super().device(library)
        device.copy_batch = None
        for name, function in self._functions.items():
            setattr(device, name, ctypes.cast(function, ctypes.c_void_p))
        return device

    def event(self, slot: int) -> int:
        return slot + 1

    def _start(self, target: int, source: int, length: int, stream: int) -> int:  # noqa: ARG002
        with self._lock:
            self._started.append((target, source, length))
        return 0

    def _start_batch(self, targets: Any, sources: Any, lengths: Any, count: int, *attributes: Any) -> int:  # noqa: ARG002
        if not self._supports_batches:
            self.refused += 1
            return NOT_SUPPORTED
        with self._lock:
            self.batches.append(count)
            self._started += [(targets[number], sources[number], lengths[number]) for number in range(count)]
        return 0

    def _record(self, event: int, stream: int) -> int:  # noqa: ARG002
        with self._lock:
            self._recorded[event] = len(self._started)
        return 0

    def _query(self, event: int) -> int:
        with self._lock:
            self._copy_until(min(self._ended + self._copies_a_query, len(self._started)))
            return NOT_READY if self._recorded[event] > self._ended else 0

    def _synchronize(self, event: int) -> int:
        with self._lock:
            self._copy_until(self._recorded[event])
        return 0

    def _copy_until(self, end: int) -> None:
        for copy in self._started[self._ended : end]:
            ctypes.memmove(*copy)
        self._ended = max(self._ended, end)


class HostEngine(CpuEngine):
    """The machine's own memory as a device of the compiled ring; with ``queue`` as its queue."""

    has_native_queue = True

    def __init__(self, queue: HostQueue | None = None) -> None:
        super().__init__()
        self._queue = queue

    def native_queue(self, slots: int) -> HostQueue:  # noqa: ARG002
        return self._queue or HostQueue(lambda length: None)  # noqa: ARG005
