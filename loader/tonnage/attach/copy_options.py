"""Options and statistics of copies to devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tonnage.errors import InvalidPlan

MIB = 1 << 20
GIB = 1 << 30

MAX_THREADS = 12
"""With more threads, they spend more time waiting for each other and for the GIL than copying."""
MANY_CORES = 8
"""From this number of cores on, two are left to the thread that allocates and to other processes."""
MAX_PINNED_BYTES = GIB
"""Maximum number of bytes of host memory that a copy pins at once."""

RING_CACHE_BYTES = 80 * MIB
"""Buffers of the compiled rings of all GPUs of a host, which may copy at once, should fit the processor's last cache:
two H100 on 32 cores took 84 to 87 GB/s with 80 MiB in all, and 67 to 71 with 128 MiB (docs/performance)."""
MIN_RING_SLOT_BYTES = MIB
"""Smaller copies keep the bus less busy: copies of 1 MiB reached 48 GB/s one by one and 52 in batches of four, those of
3 MiB 52 and 54.6, of a limit of 55 (docs/performance)."""
MAX_RING_SLOT_BYTES = 4 * MIB
"""Larger buffers take longer to allocate and pin than they save."""


def copying_cores(cores: int) -> int:
    """Returns how many of a machine's cores copy at first."""
    return cores - 2 if cores >= MANY_CORES else cores


Way = Literal["auto", "ring", "register", "plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOptions:
    """How tensors are copied to a device. The defaults were the fastest in measurements (docs/performance).

    The threads of the compiled ring and Python's threads, which copy where it can't, have buffers of their own.

    Attributes:
        way: ``ring``: through pinned buffers; ``register``: from the cache's own pages, pinned during the copy (may be
            faster if they are huge pages); ``plain``: PyTorch's own copies; ``auto``: ``ring`` if the device supports
            it, else ``plain``.
        threads: Number of worker threads. 0: the compiled ring finds the number by measuring, and of Python's threads
            there are one per core, two fewer from eight cores on, at most twelve.
        slots: Buffers of each of Python's threads.
        slot_bytes: Size of each of these, a multiple of 4096.
        native: Whether the compiled ring is used where possible.
        ring_slots: Buffers of each of the ring's threads.
        ring_slot_bytes: Size of each of these, a multiple of 4096. 0: 1 to 4 MiB, so that those of all GPUs' copies fit
            the processor's caches.
        piece_bytes: Bytes that a thread of the ring reads at a time.
        register_bytes: Bytes of a file that ``register`` pins at a time.
        group_bytes: Size of the device allocations that tensors share. An allocation is freed with its last tensor.
        streams: Number of CUDA streams that the threads share; 0: one per thread.
        direct: Whether files on disk are read with direct I/O: ``auto`` (if they are not in the page cache), ``never``
            or ``always``.
    """

    way: Way = "auto"
    threads: int = 0
    slots: int = 2
    slot_bytes: int = 6 * MIB
    native: bool = True
    ring_slots: int = 2
    ring_slot_bytes: int = 0
    piece_bytes: int = 256 << 10
    register_bytes: int = 32 * MIB
    group_bytes: int = 512 * MIB
    streams: int = 1
    direct: Literal["auto", "never", "always"] = "auto"

    def __post_init__(self) -> None:
        """Validates the options.

        Raises:
            InvalidPlan: A number is out of its range.
        """
        if not (0 <= self.threads <= 256 and 1 <= self.slots <= 64):
            raise InvalidPlan(f"threads={self.threads} must be 0 to 256 and slots={self.slots} 1 to 64.")
        if self.slot_bytes < 64 << 10 or self.slot_bytes % 4096 or self.register_bytes < 2 * MIB:
            raise InvalidPlan(
                f"slot_bytes={self.slot_bytes} must be a multiple of 4096 and at least 65,536, and "
                f"register_bytes={self.register_bytes} at least 2 MiB."
            )
        if (
            not 1 <= self.ring_slots <= 64
            or 0 < self.ring_slot_bytes < 64 << 10
            or self.ring_slot_bytes < 0
            or self.ring_slot_bytes % 4096
        ):
            raise InvalidPlan(
                f"ring_slots={self.ring_slots} must be 1 to 64, and ring_slot_bytes={self.ring_slot_bytes} 0, or a "
                "multiple of 4096 and at least 65,536."
            )
        if self.piece_bytes < 4096:
            raise InvalidPlan(f"piece_bytes={self.piece_bytes} must be at least 4096.")
        if self.group_bytes < MIB:
            raise InvalidPlan(f"group_bytes={self.group_bytes} must be at least 1 MiB.")

    def ring_buffer_bytes(self, *, threads: int, active: int, devices: int) -> int:
        """Returns the bytes of each of the ring's buffers, so that all together are at most ``MAX_PINNED_BYTES``.

        Args:
            threads: Threads of the ring.
            active: Those of them that copy.
            devices: GPUs of this host.
        """
        size = self.ring_slot_bytes
        if not size:
            fitting = RING_CACHE_BYTES // (devices * active * self.ring_slots)
            size = min(max(fitting, MIN_RING_SLOT_BYTES), MAX_RING_SLOT_BYTES)
        return min(size, MAX_PINNED_BYTES // (threads * self.ring_slots)) // 4096 * 4096

    def threads_for(self, cores: int) -> int:
        """Returns the number of worker threads for this number of cores, limited by ``MAX_PINNED_BYTES``."""
        each = self.slots * (self.register_bytes + 2 * MIB if self.way == "register" else self.slot_bytes)
        return max(1, min(self.threads or min(MAX_THREADS, copying_cores(cores)), MAX_PINNED_BYTES // each))


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyStats:
    """Statistics of a copy to a device.

    Attributes:
        way: ``ring``, ``register`` or ``plain``; of the benchmark without a GPU: ``read``.
        device: The target device.
        tensor_bytes: Bytes of tensors.
        seconds: Duration, from the call until all tensors were on the device.
        allocate_seconds: Time from the call to the last allocation. Copies run at the same time.
        threads: Number of worker threads.
        pinned_bytes: Maximum of host memory that was pinned.
        native: Whether the compiled ring copied.
    """

    way: str
    device: str
    tensor_bytes: int
    seconds: float
    allocate_seconds: float = 0.0
    threads: int = 1
    pinned_bytes: int = 0
    native: bool = False
