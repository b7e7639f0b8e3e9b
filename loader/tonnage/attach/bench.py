"""Measures how fast weights are copied to a device, and the bandwidth of the bus for comparison."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tonnage.attach.copy.chunks import pack_groups
from tonnage.attach.copy.native_workers import NativeWorkers
from tonnage.attach.copy.worker_choice import new_workers
from tonnage.attach.copy_options import CopyOptions, CopyStats
from tonnage.attach.device.lookup import find_device
from tonnage.attach.errors import DeviceFailed
from tonnage.attach.native.library import Device, function_address
from tonnage.attach.weights import open_path
from tonnage.errors import InvalidPlan

if TYPE_CHECKING:
    import ctypes
    import os

    from tonnage.attach.device.engine import CopyQueue, NativeQueue
    from tonnage.attach.weights import Weights

_BANDWIDTH_BUFFER_BYTES = 256 << 20
_BANDWIDTH_COPIES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """Results of the measurement.

    Attributes:
        path: Path of the weights.
        device: Device that the weights were copied to; ``cpu`` if there is no GPU and they were only read.
        device_name: The GPU's model.
        tensors: Number of tensors.
        tensor_bytes: Bytes of all tensors.
        pinned_bandwidth: Bandwidth of copies from pinned memory, in 10**9 bytes per second; None without a GPU.
        seconds: Duration of each load, from opening to the last byte.
        stats: Statistics of the last load.
    """

    path: str
    device: str
    device_name: str
    tensors: int
    tensor_bytes: int
    pinned_bandwidth: float | None
    seconds: tuple[float, ...]
    stats: CopyStats | None

    @property
    def rates(self) -> tuple[float, ...]:
        """Throughput of each load, in 10**9 bytes per second."""
        return tuple(self.tensor_bytes / seconds / 1e9 for seconds in self.seconds)


def measure(
    path: str | os.PathLike[str],
    *,
    device: str | None = None,
    repeat: int = 3,
    rank: int | None = None,
    options: CopyOptions | None = None,
) -> BenchResult:
    """Loads the weights several times.

    Args:
        path: As in ``tonnage.open``.
        device: Device to copy to; None: the current GPU or, without one, only into buffers, which measures how fast
            the cache is read.
        repeat: Number of loads. The first includes pinning and allocating, as in a new process.
        rank: The rank to load.
        options: How tensors are copied.

    Raises:
        InvalidPlan: ``repeat`` is below 1, or the weights have no bytes.
        TonnageError: As ``tonnage.open`` and ``Weights.state_dict`` do.
    """
    if repeat < 1:
        raise InvalidPlan(f"--repeat must be at least 1, got {repeat}.")
    options = options or CopyOptions()
    target = find_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pinned_bandwidth = None
    if target.type == "cuda":
        torch.ones(1, device=target)
        pinned_bandwidth = measure_pinned_bandwidth(target)
    seconds: list[float] = []
    for _ in range(repeat):
        began = time.perf_counter()
        hint = None if target.type == "cpu" else target
        with open_path(path, rank=rank, device=hint, meta_tensors="zeros", options=options) as weights:
            if not weights.nbytes:
                raise InvalidPlan(f"The tensors in {path} have no data to measure with.")
            stats = _read_into_buffers(weights, options) if target.type == "cpu" else _load(weights, target)
        seconds.append(time.perf_counter() - began)
    return BenchResult(
        path=str(path),
        device=str(target),
        device_name=torch.cuda.get_device_name(target) if target.type == "cuda" else "",
        tensors=len(weights),
        tensor_bytes=weights.nbytes,
        pinned_bandwidth=pinned_bandwidth,
        seconds=tuple(seconds),
        stats=stats,
    )


def measure_pinned_bandwidth(device: torch.device) -> float:
    """Returns the bandwidth from pinned memory, in 10**9 bytes per second: the best of three rounds of 4 GiB."""
    host = torch.empty(_BANDWIDTH_BUFFER_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(_BANDWIDTH_BUFFER_BYTES, dtype=torch.uint8, device=device)
    target.copy_(host, non_blocking=True)
    torch.cuda.synchronize(device)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(_BANDWIDTH_COPIES):
            target.copy_(host, non_blocking=True)
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return _BANDWIDTH_BUFFER_BYTES * _BANDWIDTH_COPIES / best / 1e9


def format_result(result: BenchResult) -> str:
    """Returns the result as lines of text."""
    lines = [f"{result.path}: {result.tensors:,} tensors, {result.tensor_bytes / 1e9:.2f} GB"]
    if result.pinned_bandwidth is None:
        lines.append("No GPU found: this is how fast the cache is read into buffers.")
        what = "read"
    else:
        lines.append(
            f"{result.device} ({result.device_name}), copies from pinned memory: {result.pinned_bandwidth:.1f} GB/s"
        )
        what = "load"
    for number, (rate, seconds) in enumerate(zip(result.rates, result.seconds, strict=True), 1):
        share = f", {rate / result.pinned_bandwidth:.2f} of the limit" if result.pinned_bandwidth else ""
        lines.append(f"{what} {number}: {rate:.1f} GB/s ({seconds:.3f} s{share})")
    if result.stats is not None:
        pinned = f", {result.stats.pinned_bytes >> 20} MiB pinned" if result.pinned_bandwidth is not None else ""
        lines.append(f"way: {result.stats.way}, {result.stats.threads} threads{pinned}")
    return "\n".join(lines)


def as_dict(result: BenchResult) -> dict[str, object]:
    """Returns the result as a dict for JSON; rates are in GB/s."""
    return {
        "path": result.path,
        "device": result.device,
        "device_name": result.device_name,
        "tensors": result.tensors,
        "tensor_bytes": result.tensor_bytes,
        "pinned_limit_gb_s": result.pinned_bandwidth,
        "seconds": list(result.seconds),
        "gb_s": list(result.rates),
        "way": result.stats.way if result.stats else "",
        "threads": result.stats.threads if result.stats else 0,
        "pinned_bytes": result.stats.pinned_bytes if result.stats else 0,
    }


def _load(weights: Weights, device: torch.device) -> CopyStats | None:
    weights.state_dict(device, progress="off")
    return weights.last_copy


def _read_into_buffers(weights: Weights, options: CopyOptions) -> CopyStats:
    """Reads all tensors into the workers' buffers and drops them."""
    began = time.perf_counter()
    groups = pack_groups(
        (record for record in weights.records.values() if record.length),
        group_bytes=options.group_bytes,
    )
    workers = new_workers(_NullEngine(), options, weights.files)
    workers.start()
    try:
        workers.run(weights.files, groups, on_group=lambda group, base: None)  # noqa: ARG005
    finally:
        workers.close()
    return CopyStats(
        way="read",
        device="cpu",
        tensor_bytes=weights.nbytes,
        seconds=time.perf_counter() - began,
        threads=workers.threads,
        native=isinstance(workers, NativeWorkers),
    )


class _NullEngine:
    """A device that drops all copies."""

    device = torch.device("cpu")
    has_native_queue = True

    def start(self) -> None:
        pass

    def queue(self, slots: int, *, streams: int) -> CopyQueue:  # noqa: ARG002
        return _NullQueue()

    def native_queue(self, slots: int) -> NativeQueue:  # noqa: ARG002
        return _NullQueue()

    def failure(self, what: str, code: int) -> DeviceFailed:
        return DeviceFailed(f"{what} failed ({code}).")

    def empty(self, size: int) -> torch.Tensor:  # noqa: ARG002
        return torch.empty(0, dtype=torch.uint8)

    def synchronize(self) -> None:
        pass

    def device_count(self) -> int:
        return 1

    def local_cpus(self) -> set[int]:
        return set()


class _NullQueue:
    """A queue that drops all copies."""

    def device(self, library: ctypes.CDLL) -> Device:
        return Device(
            copy=function_address(library, "ring_drop_copy"),
            record=function_address(library, "ring_host_record"),
            synchronize=function_address(library, "ring_host_synchronize"),
        )

    def event(self, slot: int) -> int:  # noqa: ARG002
        return 0

    def copy(self, target: int, source: int, length: int) -> None:
        pass

    def record_event(self, slot: int) -> None:
        pass

    def wait(self, slot: int) -> None:
        pass

    def drain(self) -> None:
        pass

    def pin(self, address: int, length: int, *, read_only: bool) -> bool:  # noqa: ARG002
        return True

    def unpin(self, address: int) -> None:
        pass

    def close(self) -> None:
        pass
