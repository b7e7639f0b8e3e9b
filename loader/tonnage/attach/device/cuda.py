"""Asynchronous copies to NVIDIA GPUs with the CUDA driver API.

A call through ctypes takes about a microsecond; the same copy through PyTorch takes several, and allocates. Calls that
may block release the GIL. Short calls keep it: reacquiring it among a dozen busy threads takes tens of microseconds,
which at five calls per chunk limited throughput. PyTorch allocates the memory but is not aware of the copies, so a
copy's target must not be in use (``synchronize``), and must not be used before the queues are drained.
Functions and constants: CUDA driver API, cuda.h.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tonnage.attach.errors import DeviceFailed
from tonnage.attach.native.library import Device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.attach.device.engine import CopyQueue, NativeQueue

SYS = Path("/sys")

_SUCCESS = 0
_STREAM_NON_BLOCKING = 1
_EVENT_DISABLE_TIMING = 2
_REGISTER_PORTABLE = 1
_REGISTER_READ_ONLY = 8

_BATCH = "cuMemcpyBatchAsync"
"""Copies several buffers at once. Drivers have it since CUDA 12.8, those of CUDA 13 with the same arguments."""

_POINTER = ctypes.c_void_p
_FUNCTIONS: dict[str, Sequence[type]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDeviceGet": (_POINTER, ctypes.c_int),
    "cuDeviceGetPCIBusId": (ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (_POINTER, ctypes.c_int),
    "cuCtxSetCurrent": (_POINTER,),
    "cuStreamCreate": (_POINTER, ctypes.c_uint),
    "cuStreamSynchronize": (_POINTER,),
    "cuStreamDestroy_v2": (_POINTER,),
    "cuEventCreate": (_POINTER, ctypes.c_uint),
    "cuEventRecord": (_POINTER, _POINTER),
    "cuEventQuery": (_POINTER,),
    "cuEventSynchronize": (_POINTER,),
    "cuEventDestroy_v2": (_POINTER,),
    "cuMemcpyHtoDAsync_v2": (ctypes.c_uint64, _POINTER, ctypes.c_size_t, _POINTER),
    "cuMemHostRegister_v2": (_POINTER, ctypes.c_size_t, ctypes.c_uint),
    "cuMemHostUnregister": (_POINTER,),
    "cuGetErrorName": (ctypes.c_int, _POINTER),
}


class Driver:
    """The functions of libcuda that a copy needs.

    Attributes:
        cdll: The library; calls release the GIL.
        pydll: The same library; calls keep the GIL.
    """

    def __init__(self) -> None:
        """Loads the driver's library.

        Raises:
            OSError: This machine has no CUDA driver.
        """
        self.cdll = ctypes.CDLL("libcuda.so.1")
        self.pydll = ctypes.PyDLL("libcuda.so.1")
        for library in (self.cdll, self.pydll):
            for name, arguments in _FUNCTIONS.items():
                function = getattr(library, name)
                function.argtypes = list(arguments)
                function.restype = ctypes.c_int

    def call(self, name: str, *arguments: object) -> None:
        """Calls a function, without the GIL.

        Raises:
            DeviceFailed: The function returned an error. The message has its name.
        """
        code = getattr(self.cdll, name)(*arguments)
        if code != _SUCCESS:
            raise self.failure(name, code)

    def address(self, name: str) -> int:
        """Returns the address of a function; 0 if this driver doesn't have it."""
        function = getattr(self.cdll, name, None)
        return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0

    def failure(self, name: str, code: int) -> DeviceFailed:
        """Returns an exception for a function's error code."""
        text = ctypes.c_char_p()
        self.cdll.cuGetErrorName(code, ctypes.byref(text))
        return DeviceFailed(f"{name} failed: {(text.value or b'unknown error').decode()} ({code}).")


class StreamPool:
    """Reference-counted streams that worker threads share, round robin. Thread-safe."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        self._streams: dict[int, tuple[ctypes.c_void_p, int]] = {}
        self._next = 0

    def acquire(self, count: int) -> tuple[int, ctypes.c_void_p]:
        """Returns a number for ``release``, and one of ``count`` shared streams; a new stream if ``count`` is 0."""
        with self._lock:
            stream_id = self._next % count if count else -1 - self._next
            self._next += 1
            if stream_id not in self._streams:
                stream = ctypes.c_void_p()
                self._driver.call("cuStreamCreate", ctypes.byref(stream), _STREAM_NON_BLOCKING)
                self._streams[stream_id] = (stream, 0)
            stream, users = self._streams[stream_id]
            self._streams[stream_id] = (stream, users + 1)
            return stream_id, stream

    def release(self, stream_id: int) -> None:
        """Destroys the stream if this was its last user."""
        with self._lock:
            stream, users = self._streams.pop(stream_id)
            if users > 1:
                self._streams[stream_id] = (stream, users - 1)
            else:
                self._driver.call("cuStreamDestroy_v2", stream)


class CudaQueue:
    """A worker thread's copies on a stream, and an event for each slot."""

    def __init__(
        self, driver: Driver, slots: int, streams: StreamPool, *, shared: int, context: ctypes.c_void_p | None
    ) -> None:
        self._driver = driver
        self._context = context
        self._streams = streams
        raw = driver.cdll
        self._memcpy = driver.pydll.cuMemcpyHtoDAsync_v2
        self._record = driver.pydll.cuEventRecord
        self._query = driver.pydll.cuEventQuery
        self._synchronize = raw.cuEventSynchronize
        self._stream_id, self._stream = streams.acquire(shared)
        self._events: list[ctypes.c_void_p] = []
        for _ in range(slots):
            event = ctypes.c_void_p()
            driver.call("cuEventCreate", ctypes.byref(event), _EVENT_DISABLE_TIMING)
            self._events.append(event)

    def copy(self, target: int, source: int, length: int) -> None:
        code = self._memcpy(target, source, length, self._stream)
        if code:
            raise self._driver.failure("cuMemcpyHtoDAsync", code)

    def record_event(self, slot: int) -> None:
        code = self._record(self._events[slot], self._stream)
        if code:
            raise self._driver.failure("cuEventRecord", code)

    def wait(self, slot: int) -> None:
        """Waits for the slot's event; returns immediately if it was never recorded."""
        event = self._events[slot]
        if self._query(event) == _SUCCESS:
            return
        code = self._synchronize(event)
        if code:
            raise self._driver.failure("cuEventSynchronize", code)

    def drain(self) -> None:
        self._driver.call("cuStreamSynchronize", self._stream)

    def pin(self, address: int, length: int, *, read_only: bool) -> bool:
        """Registers the memory with the driver; False if the driver can't (limits, virtual machines, WSL)."""
        flags = _REGISTER_PORTABLE | (_REGISTER_READ_ONLY if read_only else 0)
        return bool(self._driver.cdll.cuMemHostRegister_v2(address, length, flags) == _SUCCESS)

    def unpin(self, address: int) -> None:
        self._driver.call("cuMemHostUnregister", address)

    def device(self, library: ctypes.CDLL) -> Device:  # noqa: ARG002  # other devices use functions of the library
        driver = self._driver
        return Device(
            set_context=driver.address("cuCtxSetCurrent"),
            copy=driver.address("cuMemcpyHtoDAsync_v2"),
            copy_batch=driver.address(_BATCH),
            record=driver.address("cuEventRecord"),
            query=driver.address("cuEventQuery"),
            synchronize=driver.address("cuEventSynchronize"),
            pin=driver.address("cuMemHostRegister_v2"),
            unpin=driver.address("cuMemHostUnregister"),
            context=self._context,
            stream=self._stream,
        )

    def event(self, slot: int) -> int:
        return self._events[slot].value or 0

    def close(self) -> None:
        """Destroys the events and releases the stream."""
        for event in self._events:
            self._driver.call("cuEventDestroy_v2", event)
        self._streams.release(self._stream_id)


class CudaEngine:
    """One GPU, through its primary context, which PyTorch uses too."""

    has_native_queue = True

    def __init__(self, device: torch.device) -> None:
        """Loads the driver's library.

        Args:
            device: A CUDA device with an index.

        Raises:
            OSError: This machine has no CUDA driver.
        """
        self.device = device
        self._driver = Driver()
        self._streams = StreamPool(self._driver)
        self._lock = threading.Lock()
        self._context: ctypes.c_void_p | None = None

    @property
    def _index(self) -> int:
        return self.device.index or 0

    def start(self) -> None:
        """Retains the GPU's primary context and makes it current for the calling thread."""
        with self._lock:
            if self._context is None:
                handle = ctypes.c_int()
                self._driver.call("cuInit", 0)
                self._driver.call("cuDeviceGet", ctypes.byref(handle), self._index)
                context = ctypes.c_void_p()
                self._driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
                self._context = context
        self._driver.call("cuCtxSetCurrent", self._context)

    def queue(self, slots: int, *, streams: int) -> CopyQueue:
        return CudaQueue(self._driver, slots, self._streams, shared=streams, context=self._context)

    def native_queue(self, slots: int) -> NativeQueue:
        return CudaQueue(self._driver, slots, self._streams, shared=1, context=self._context)

    def failure(self, what: str, code: int) -> DeviceFailed:
        return self._driver.failure(what, code)

    def empty(self, size: int) -> torch.Tensor:
        """Allocates on the GPU with PyTorch's allocator."""
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def synchronize(self) -> None:
        """Waits for PyTorch's current stream, in whose order its allocator reuses memory."""
        torch.cuda.current_stream(self.device).synchronize()

    def device_count(self) -> int:
        """Returns the number of GPUs that this process sees."""
        return torch.cuda.device_count()

    def local_cpus(self) -> set[int]:
        """Returns the cores on the GPU's NUMA node."""
        bus_id = ctypes.create_string_buffer(32)
        handle = ctypes.c_int()
        raw = self._driver.cdll
        if raw.cuInit(0) or raw.cuDeviceGet(ctypes.byref(handle), self._index):
            return set()
        if raw.cuDeviceGetPCIBusId(bus_id, len(bus_id), handle):
            return set()
        return numa_local_cpus(bus_id.value.decode())


def parse_cpu_list(text: str) -> set[int]:
    """Parses a kernel CPU list such as ``0-3,8``; empty if it is invalid."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            return set()
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def numa_local_cpus(bus_id: str, *, sys: Path = SYS) -> set[int]:
    """Returns the cores on a PCI device's NUMA node that this process may use.

    Empty if that is all of them, or if the node is unknown.

    Args:
        bus_id: PCI bus ID as the driver returns it, for example ``0000:1B:00.0``.
        sys: Mount point of sysfs.
    """
    folder = sys / "bus/pci/devices" / bus_id.lower()
    try:
        if int((folder / "numa_node").read_text()) < 0:
            return set()
        local = parse_cpu_list((folder / "local_cpulist").read_text())
    except (OSError, ValueError):
        return set()
    allowed = os.sched_getaffinity(0)
    return local & allowed if local & allowed != allowed else set()
