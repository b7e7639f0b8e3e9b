"""Records onto a device: which way, in which groups, and what becomes of the ones to be converted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from tonnage.attach.chunks import ALIGNMENT, pack, total_bytes
from tonnage.attach.devices import check_room, engine_for
from tonnage.attach.errors import DeviceMemoryShort
from tonnage.attach.options import CopyStats
from tonnage.attach.ring import Ring
from tonnage.attach.views import cpu_view, group_view, nbytes, torch_dtype, without_data
from tonnage.errors import InvalidPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tonnage.attach.chunks import Group
    from tonnage.attach.engine import Engine
    from tonnage.attach.files import SourceFile
    from tonnage.attach.options import CopyOptions
    from tonnage.attach.progress import Reporter
    from tonnage.attach.records import Record

PASSING_BYTES = 32 << 20
"""Size of the groups that exist only until their tensors are converted, or copied to where they belong."""
WINDOW = 240 << 20
"""Bytes of such groups that exist at once: two of the largest matrices of common models."""

_CONVERTIBLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def converts(record: Record, dtype: torch.dtype | None) -> bool:
    """Says whether ``dtype=`` changes this tensor.

    Only the floating types that hold values as they are do change: not complex numbers, not integers, and not the types
    of 8 bits and less, which are quantized weights and mean nothing without their scales.
    """
    own = torch_dtype(record)
    return dtype is not None and own in _CONVERTIBLE and own != dtype


def check_target(dtype: torch.dtype | None) -> None:
    """Refuses a ``dtype=`` that tensors can't be converted to.

    Raises:
        InvalidPlan: It is no dtype, or not a floating one.
    """
    if dtype is not None and not getattr(dtype, "is_floating_point", False):
        raise InvalidPlan(f"dtype={dtype} is not a floating type; only floating tensors can be converted.")


class Uploader:
    """Brings tensors of files to devices.

    Attributes:
        last: How the last copy went; None before the first.
    """

    def __init__(
        self,
        options: CopyOptions,
        *,
        meta_tensors: str,
        engine_factory: Callable[[torch.device], Engine | None] = engine_for,
    ) -> None:
        self.last: CopyStats | None = None
        self._files: Sequence[SourceFile] = ()
        self._options = options
        self._meta_tensors = meta_tensors
        self._engine_factory = engine_factory
        self._ready: tuple[torch.device, Ring] | None = None

    def use_files(self, files: Sequence[SourceFile]) -> None:
        """Says which files records refer to: warming up can begin before they are known."""
        self._files = files

    def warm_up(self, device: torch.device) -> None:
        """Starts the workers for a copy that will come, so that their buffers are ready by then."""
        if self._ready is None and self._options.way != "plain":
            ring = self._new_ring(device)
            if ring is not None:
                self._ready = (device, ring)

    def close(self) -> None:
        """Lets go of workers that were never used."""
        if self._ready is not None:
            self._ready[1].close()
            self._ready = None

    def load(
        self, records: Sequence[Record], device: torch.device, *, dtype: torch.dtype | None, reporter: Reporter
    ) -> dict[str, torch.Tensor]:
        """Returns the tensors on the device, in the order of the records.

        Raises:
            DeviceMemoryShort: They don't fit.
            DeviceFailed: The device refused something.
            CacheDamaged: A file became shorter or can't be read.
        """
        self.warm_up(device)
        began = time.perf_counter()
        stored = [record for record in records if record.length]
        changing = [record for record in stored if converts(record, dtype)]
        groups = pack(
            (record for record in stored if not converts(record, dtype)), group_bytes=self._options.group_bytes
        )
        check_room(device, _room(groups, records, changing, dtype), what=f"These {len(records):,} tensors")
        found: dict[str, torch.Tensor] = {}

        def keep(group: Group, base: torch.Tensor) -> None:
            for record, offset in group.slots:
                found[record.name] = group_view(base, record, offset)

        def convert(record: Record, tensor: torch.Tensor) -> None:
            found[record.name] = tensor.to(dtype=dtype) if converts(record, dtype) else tensor

        stats = None
        try:
            if groups:
                stats = self._run(groups, device, keep, reporter)
            if changing:
                stats = self._each(changing, device, convert, reporter)
            for record in records:
                if not record.length:
                    convert(record, without_data(record, device, meta_tensors=self._meta_tensors))
            _settle(device)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryShort(f"{device} ran out of memory while loading: {error}") from error
        if stats is not None:
            self._remember(stats, sum(record.length for record in stored), device, began)
        return {record.name: found[record.name] for record in records}

    def stream(
        self,
        records: Sequence[Record],
        device: torch.device,
        use: Callable[[Record, torch.Tensor], None],
        *,
        reporter: Reporter,
    ) -> None:
        """Calls ``use`` with each tensor while it is on the device; its memory is given back afterwards.

        ``use`` copies what it wants to keep, on PyTorch's current stream. The order is that of the files.

        Raises:
            DeviceMemoryShort: The largest tensor doesn't fit.
            DeviceFailed: The device refused something.
            CacheDamaged: A file became shorter or can't be read.
        """
        self.warm_up(device)
        began = time.perf_counter()
        stored = [record for record in records if record.length]
        check_room(device, _window_room(stored), what="The buffers for this load")
        try:
            stats = self._each(stored, device, use, reporter) if stored else None
            for record in records:
                if not record.length:
                    use(record, without_data(record, device, meta_tensors="zeros"))
            _settle(device)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryShort(f"{device} ran out of memory while loading: {error}") from error
        if stats is not None:
            self._remember(stats, sum(record.length for record in stored), device, began)

    def _each(
        self,
        records: Sequence[Record],
        device: torch.device,
        use: Callable[[Record, torch.Tensor], None],
        reporter: Reporter,
    ) -> tuple[str, Ring | None]:
        def hand_out(group: Group, base: torch.Tensor) -> None:
            for record, offset in group.slots:
                use(record, group_view(base, record, offset))

        groups = pack(records, group_bytes=PASSING_BYTES)
        return self._run(groups, device, hand_out, reporter, window=WINDOW)

    def _run(
        self,
        groups: Sequence[Group],
        device: torch.device,
        on_group: Callable[[Group, torch.Tensor], None],
        reporter: Reporter,
        *,
        window: int = 0,
    ) -> tuple[str, Ring | None]:
        """One pass over the groups, and how it was made."""
        ring = self._take_ring(device)
        if ring is None:
            self._one_by_one(groups, device, on_group, reporter)
            return "plain", None
        try:
            ring.run(self._files, groups, on_group=on_group, window=window, progress=reporter)
        finally:
            ring.close()
        reporter.phase_ends(_tensor_bytes(groups))
        return ("register" if self._options.way == "register" else "ring"), ring

    def _one_by_one(
        self,
        groups: Sequence[Group],
        device: torch.device,
        on_group: Callable[[Group, torch.Tensor], None],
        reporter: Reporter,
    ) -> None:
        """PyTorch's own copies from the mapping, for devices without an engine."""
        done = 0
        for group in groups:
            base = torch.empty(group.size, dtype=torch.uint8, device=device)
            for run in group.runs:
                mapping = self._files[run.file].mapping()
                source = torch.frombuffer(mapping, dtype=torch.uint8, count=run.length, offset=run.source)
                base[run.target : run.target + run.length].copy_(source)
                done += run.length
                reporter(done)
            on_group(group, base)
        reporter.phase_ends(_tensor_bytes(groups))

    def _take_ring(self, device: torch.device) -> Ring | None:
        if self._ready is not None:
            ready, ring = self._ready
            self._ready = None
            if ready == device:
                return ring
            ring.close()
        return self._new_ring(device)

    def _new_ring(self, device: torch.device) -> Ring | None:
        if self._options.way == "plain":
            return None
        engine = self._engine_factory(device)
        if engine is None:
            return None
        ring = Ring(engine, self._options)
        ring.start()
        return ring

    def _remember(self, made: tuple[str, Ring | None], size: int, device: torch.device, began: float) -> None:
        way, ring = made
        now = time.perf_counter()
        self.last = CopyStats(
            way=way,
            device=str(device),
            tensor_bytes=size,
            seconds=now - began,
            allocate_seconds=max(ring.allocated_at - began, 0.0) if ring is not None else 0.0,
            threads=ring.threads if ring is not None else 1,
            pinned_bytes=ring.pinned_bytes if ring is not None else 0,
        )


def on_cpu(
    record: Record, files: Sequence[SourceFile], *, dtype: torch.dtype | None, meta_tensors: str
) -> torch.Tensor:
    """Returns a tensor in the machine's own memory: a view of the cache unless it is converted or has no data."""
    if record.length:
        tensor = cpu_view(record, files[record.file])
    else:
        tensor = without_data(record, "cpu", meta_tensors=meta_tensors)
    return tensor.to(dtype=dtype) if converts(record, dtype) else tensor


def _tensor_bytes(groups: Sequence[Group]) -> int:
    return sum(record.length for group in groups for record, _ in group.slots)


def _settle(device: torch.device) -> None:
    """Waits for conversions and fills, so that whatever stream uses the tensors next finds them done."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _room(
    groups: Sequence[Group], records: Sequence[Record], changing: Sequence[Record], dtype: torch.dtype | None
) -> int:
    """Bytes of device memory that a load takes at its peak."""
    room = total_bytes(groups) + sum(nbytes(record) + ALIGNMENT for record in records if not record.length)
    if changing and dtype is not None:
        room += sum(nbytes(record) // record.item_size * dtype.itemsize for record in changing)
        room += _window_room(changing)
    return room


def _window_room(records: Sequence[Record]) -> int:
    """Bytes of device memory for the groups that are there at once, at most."""
    sizes = [record.length + ALIGNMENT for record in records]
    return min(sum(sizes), max(WINDOW, *sizes)) if sizes else 0
