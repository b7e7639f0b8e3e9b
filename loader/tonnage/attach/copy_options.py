"""How copies to a device are made, and how the last one went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tonnage.errors import InvalidPlan

MIB = 1 << 20
GIB = 1 << 30

MAX_THREADS = 12
"""Beyond it, threads wait for each other and for the interpreter's lock more than they copy."""
MANY_CORES = 8
"""From here on two cores are left to the thread that allocates and to whatever else runs."""
MAX_PINNED_BYTES = GIB
"""Bytes of host memory that a copy may pin at once."""

Way = Literal["auto", "ring", "register", "plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOptions:
    """How tensors get onto a device. The defaults are what was measured best (docs/guides/attach.md).

    Attributes:
        way: ``ring``: through pinned buffers; ``register``: from the cache's own pages, pinned for the while (worth a
            try where they are huge); ``plain``: PyTorch's own copy, tensor by tensor; ``auto``: the ring where the
            device has one.
        threads: Worker threads, each on a core of its own; 0: as many as there are cores, two fewer from eight cores
            on, and twelve at most.
        slots: Buffers of each thread.
        slot_bytes: Size of each buffer, a multiple of 4096.
        register_bytes: How much of a file is pinned at a time with ``register``.
        group_bytes: Size of the device allocations that tensors share. One is freed when the last of its tensors goes.
        streams: CUDA streams that the threads share; 0: each has its own.
        direct: Whether to read files on disks past the page cache: ``auto`` (what isn't in it), ``never``, ``always``.
    """

    way: Way = "auto"
    threads: int = 0
    slots: int = 2
    slot_bytes: int = 6 * MIB
    register_bytes: int = 32 * MIB
    group_bytes: int = 512 * MIB
    streams: int = 1
    direct: Literal["auto", "never", "always"] = "auto"

    def __post_init__(self) -> None:
        """Refuses what can't work.

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
        if self.group_bytes < MIB:
            raise InvalidPlan(f"group_bytes={self.group_bytes} must be at least 1 MiB.")

    def threads_for(self, cores: int) -> int:
        """Returns how many workers to run on this many cores, within what may be pinned."""
        each = self.slots * (self.register_bytes + 2 * MIB if self.way == "register" else self.slot_bytes)
        spare = 2 if cores >= MANY_CORES else 0
        return max(1, min(self.threads or min(MAX_THREADS, cores - spare), MAX_PINNED_BYTES // each))


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyStats:
    """How the last copy to a device went.

    Attributes:
        way: How it was made.
        device: Where to.
        tensor_bytes: Bytes of tensors.
        seconds: From the call until all was there.
        allocate_seconds: Of these, until the last allocation was made; copies run meanwhile.
        threads: Workers.
        pinned_bytes: Host memory pinned for it, at most.
    """

    way: str
    device: str
    tensor_bytes: int
    seconds: float
    allocate_seconds: float = 0.0
    threads: int = 1
    pinned_bytes: int = 0

    @property
    def gigabytes_per_second(self) -> float:
        """10**9 bytes a second."""
        return self.tensor_bytes / self.seconds / 1e9 if self.seconds else 0.0
