"""How fast this machine brings these weights to this device, beside what its bus can do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tonnage.attach.chunks import pack
from tonnage.attach.devices import find_device
from tonnage.attach.options import CopyOptions, CopyStats
from tonnage.attach.ring import Ring
from tonnage.attach.weights import open_path
from tonnage.errors import InvalidPlan

if TYPE_CHECKING:
    import os

    from tonnage.attach.engine import CopyQueue
    from tonnage.attach.weights import Weights

_LIMIT_BYTES = 256 << 20
_LIMIT_COPIES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """What was measured.

    Attributes:
        path: The weights.
        device: Where they went; ``cpu`` where there is no GPU and they were only read.
        device_name: The GPU's model.
        tensors: How many.
        tensor_bytes: Of all tensors.
        limit: What the bus does from pinned memory, in 10**9 bytes a second; None without a GPU.
        seconds: Of each load, from opening to the last byte.
        stats: Of the last load.
    """

    path: str
    device: str
    device_name: str
    tensors: int
    tensor_bytes: int
    limit: float | None
    seconds: tuple[float, ...]
    stats: CopyStats | None

    @property
    def rates(self) -> tuple[float, ...]:
        """10**9 bytes a second, of each load."""
        return tuple(self.tensor_bytes / seconds / 1e9 for seconds in self.seconds)


def measure(
    path: str | os.PathLike[str],
    *,
    device: str | None = None,
    repeat: int = 3,
    rank: int | None = None,
    options: CopyOptions | None = None,
) -> BenchResult:
    """Loads the weights a few times.

    Args:
        path: What ``tonnage.open`` takes.
        device: Where to; None: the GPU, or where there is none just into buffers, to see how fast the cache is read.
        repeat: How often. The first time counts pinning and allocating, as it does in a process that starts.
        rank: Which rank's weights.
        options: How copies are made.

    Raises:
        InvalidPlan: ``repeat`` is below 1, or the weights have no bytes.
        TonnageError: As ``tonnage.open`` and ``Weights.state_dict`` do.
    """
    if repeat < 1:
        raise InvalidPlan(f"--repeat {repeat}: once is the least.")
    options = options or CopyOptions()
    target = find_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    limit = None
    if target.type == "cuda":
        torch.ones(1, device=target)
        limit = pinned_limit(target)
    seconds: list[float] = []
    for _ in range(repeat):
        began = time.perf_counter()
        hint = None if target.type == "cpu" else target
        with open_path(path, rank=rank, device=hint, meta_tensors="zeros", options=options) as weights:
            if not weights.nbytes:
                raise InvalidPlan(f"{path} has no bytes to measure with.")
            stats = _read(weights, options) if target.type == "cpu" else _load(weights, target)
        seconds.append(time.perf_counter() - began)
    return BenchResult(
        path=str(path),
        device=str(target),
        device_name=torch.cuda.get_device_name(target) if target.type == "cuda" else "",
        tensors=len(weights),
        tensor_bytes=weights.nbytes,
        limit=limit,
        seconds=tuple(seconds),
        stats=stats,
    )


def pinned_limit(device: torch.device) -> float:
    """Returns what copies from pinned memory reach, in 10**9 bytes a second: the best of three rounds of 4 GiB."""
    host = torch.empty(_LIMIT_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(_LIMIT_BYTES, dtype=torch.uint8, device=device)
    target.copy_(host, non_blocking=True)
    torch.cuda.synchronize(device)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(_LIMIT_COPIES):
            target.copy_(host, non_blocking=True)
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return _LIMIT_BYTES * _LIMIT_COPIES / best / 1e9


def describe(result: BenchResult) -> str:
    """Returns the result as a few lines of text."""
    lines = [f"{result.path}: {result.tensors:,} tensors, {result.tensor_bytes / 1e9:.2f} GB"]
    if result.limit is None:
        lines.append("There is no GPU here: this is how fast the cache is read into buffers.")
        what = "read"
    else:
        lines.append(f"{result.device} ({result.device_name}), pinned memory copies at {result.limit:.1f} GB/s")
        what = "load"
    for number, (rate, seconds) in enumerate(zip(result.rates, result.seconds, strict=True), 1):
        share = f", {rate / result.limit:.2f} of the limit" if result.limit else ""
        lines.append(f"{what} {number}: {rate:.1f} GB/s ({seconds:.3f} s{share})")
    if result.stats is not None:
        pinned = f", {result.stats.pinned_bytes >> 20} MiB pinned" if result.limit is not None else ""
        lines.append(f"way: {result.stats.way}, {result.stats.threads} threads{pinned}")
    return "\n".join(lines)


def as_json(result: BenchResult) -> dict[str, object]:
    """Returns the result with the names of the attributes, rates in GB/s."""
    return {
        "path": result.path,
        "device": result.device,
        "device_name": result.device_name,
        "tensors": result.tensors,
        "tensor_bytes": result.tensor_bytes,
        "pinned_limit_gb_s": result.limit,
        "seconds": list(result.seconds),
        "gb_s": list(result.rates),
        "way": result.stats.way if result.stats else "",
        "threads": result.stats.threads if result.stats else 0,
        "pinned_bytes": result.stats.pinned_bytes if result.stats else 0,
    }


def _load(weights: Weights, device: torch.device) -> CopyStats | None:
    weights.state_dict(device, progress="off")
    return weights.last_copy


def _read(weights: Weights, options: CopyOptions) -> CopyStats:
    """Reads all tensors into the ring's buffers, and no further."""
    began = time.perf_counter()
    groups = pack(
        (record for record in weights.records.values() if record.length),
        group_bytes=options.group_bytes,
    )
    ring = Ring(_Nowhere(), options)
    ring.start()
    try:
        ring.run(weights.files, groups, on_group=lambda group, base: None)  # noqa: ARG005
    finally:
        ring.close()
    return CopyStats(
        way="read",
        device="cpu",
        tensor_bytes=weights.nbytes,
        seconds=time.perf_counter() - began,
        threads=ring.threads,
    )


class _Nowhere:
    """A device that takes nothing."""

    name = "nowhere"
    device = torch.device("cpu")

    def start(self) -> None:
        """Nothing to get ready."""

    def queue(self, slots: int, *, sleep: bool, streams: int) -> CopyQueue:  # noqa: ARG002
        return _Drop()

    def empty(self, size: int) -> torch.Tensor:  # noqa: ARG002
        return torch.empty(0, dtype=torch.uint8)

    def settle(self) -> None:
        """Nothing is under way."""

    def near_cores(self) -> set[int]:
        return set()


class _Drop:
    """A queue that copies nothing."""

    def copy(self, target: int, source: int, length: int) -> None:
        """Drops it."""

    def mark(self, slot: int) -> None:
        """Nothing is under way."""

    def wait(self, slot: int) -> None:
        """Nothing is under way."""

    def drain(self) -> None:
        """Nothing is under way."""

    def pin(self, address: int, length: int, *, read_only: bool) -> bool:  # noqa: ARG002
        return True

    def unpin(self, address: int) -> None:
        """Nothing was pinned."""

    def close(self) -> None:
        """Nothing to let go of."""
