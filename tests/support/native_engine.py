"""The machine's own memory as a device of the compiled ring."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from support.cpu_engine import CpuEngine
from tonnage.attach.native.library import Device, function_address

if TYPE_CHECKING:
    from collections.abc import Callable

Copy = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
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
            record=function_address(library, "ring_host_record"),
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


class HostEngine(CpuEngine):
    """The machine's own memory as a device of the compiled ring."""

    has_native_queue = True

    def native_queue(self, slots: int) -> HostQueue:  # noqa: ARG002
        return HostQueue(lambda length: None)  # noqa: ARG005
