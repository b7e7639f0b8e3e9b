"""Copies tensors from files to a device, and converts them there."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import torch

from tonnage.attach.copy.chunks import ALIGNMENT, pack_groups, total_bytes
from tonnage.attach.copy.native_workers import NativeWorkers
from tonnage.attach.copy.tensor_views import cpu_view, group_view, nbytes, tensor_without_data, torch_dtype
from tonnage.attach.copy.worker_choice import new_workers, suits
from tonnage.attach.copy_options import CopyStats
from tonnage.attach.device.lookup import check_free_memory, engine_for
from tonnage.attach.errors import DeviceMemoryShort
from tonnage.errors import InvalidPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from tonnage.attach.copy.chunks import Group
    from tonnage.attach.copy.worker_choice import Workers
    from tonnage.attach.copy_options import CopyOptions
    from tonnage.attach.device.engine import Engine
    from tonnage.attach.files.source_file import SourceFile
    from tonnage.attach.files.tensor_info import TensorInfo
    from tonnage.attach.progress import ProgressReporter

TEMPORARY_GROUP_BYTES = 32 << 20
"""Size of groups that exist only until their tensors are converted, or copied into a module."""
WINDOW_BYTES = 240 << 20
"""Maximum bytes of such groups at once: two of the largest matrices of common models."""

_CONVERTIBLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def needs_conversion(record: TensorInfo, dtype: torch.dtype | None) -> bool:
    """Returns whether ``dtype=`` converts this tensor.

    Only float16, bfloat16, float32 and float64 are converted: not complex numbers, not integers, and not floating types
    of 8 bits and fewer, which are quantized weights and have no meaning without their scales.
    """
    own = torch_dtype(record)
    return dtype is not None and own in _CONVERTIBLE and own != dtype


def check_dtype(dtype: torch.dtype | None) -> None:
    """Validates a ``dtype=`` argument.

    Raises:
        InvalidPlan: It is not a floating dtype.
    """
    if dtype is not None and not getattr(dtype, "is_floating_point", False):
        raise InvalidPlan(f"dtype={dtype} is not a floating type; only floating tensors can be converted.")


class DeviceCopier:
    """Copies tensors from files to devices.

    Attributes:
        last_copy: Statistics of the last copy; None before the first.
    """

    def __init__(
        self,
        options: CopyOptions,
        *,
        meta_tensors: str,
        engine_factory: Callable[[torch.device], Engine | None] = engine_for,
    ) -> None:
        self.last_copy: CopyStats | None = None
        self._files: Sequence[SourceFile] = ()
        self._options = options
        self._meta_tensors = meta_tensors
        self._engine_factory = engine_factory
        self._warm_workers: tuple[torch.device, Workers] | None = None

    def set_files(self, files: Sequence[SourceFile]) -> None:
        """Sets the files that tensors refer to by number. They are opened after ``warm_up``."""
        self._files = files

    def warm_up(self, device: torch.device) -> None:
        """Starts workers in advance, which prepare their buffers in the background."""
        if self._warm_workers is None and self._options.way != "plain":
            workers = self._start_workers(device)
            if workers is not None:
                self._warm_workers = (device, workers)

    def close(self) -> None:
        """Stops workers that were never used."""
        if self._warm_workers is not None:
            self._warm_workers[1].close()
            self._warm_workers = None

    def load(
        self,
        records: Sequence[TensorInfo],
        device: torch.device,
        *,
        dtype: torch.dtype | None,
        reporter: ProgressReporter,
    ) -> dict[str, torch.Tensor]:
        """Returns the tensors on the device, in the order of ``records``.

        Raises:
            DeviceMemoryShort: The device has too little free memory.
            DeviceFailed: The device's driver returned an error.
            CacheDamaged: A file became shorter or can't be read.
        """
        self.warm_up(device)
        began = time.perf_counter()
        stored = [record for record in records if record.length]
        to_convert = [record for record in stored if needs_conversion(record, dtype)]
        groups = pack_groups(
            (record for record in stored if not needs_conversion(record, dtype)), group_bytes=self._options.group_bytes
        )
        check_free_memory(
            device, _peak_bytes(groups, records, to_convert, dtype), label=f"These {len(records):,} tensors"
        )
        found: dict[str, torch.Tensor] = {}

        def add_views(group: Group, base: torch.Tensor) -> None:
            for record, offset in group.tensors:
                found[record.name] = group_view(base, record, offset)

        def convert(record: TensorInfo, tensor: torch.Tensor) -> None:
            found[record.name] = tensor.to(dtype=dtype) if needs_conversion(record, dtype) else tensor

        stats = None
        try:
            if groups:
                stats = self._run(groups, device, add_views, reporter)
            if to_convert:
                stats = self._stream_groups(to_convert, device, convert, reporter)
            for record in records:
                if not record.length:
                    convert(record, tensor_without_data(record, device, meta_tensors=self._meta_tensors))
            _synchronize(device)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryShort(f"{device} ran out of memory while loading: {error}") from error
        if stats is not None:
            self._record_stats(stats, sum(record.length for record in stored), device, began)
        return {record.name: found[record.name] for record in records}

    def stream(
        self,
        records: Sequence[TensorInfo],
        device: torch.device,
        use: Callable[[TensorInfo, torch.Tensor], None],
        *,
        reporter: ProgressReporter,
    ) -> None:
        """Calls ``use`` with each tensor on the device, in the order of the files, and frees its memory afterwards.

        ``use`` must copy the data on PyTorch's current stream.

        Raises:
            DeviceMemoryShort: The device has too little free memory for the largest tensor.
            DeviceFailed: The device's driver returned an error.
            CacheDamaged: A file became shorter or can't be read.
        """
        self.warm_up(device)
        began = time.perf_counter()
        stored = [record for record in records if record.length]
        check_free_memory(device, _window_peak_bytes(stored), label="The buffers for this load")
        try:
            stats = self._stream_groups(stored, device, use, reporter) if stored else None
            for record in records:
                if not record.length:
                    use(record, tensor_without_data(record, device, meta_tensors="zeros"))
            _synchronize(device)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryShort(f"{device} ran out of memory while loading: {error}") from error
        if stats is not None:
            self._record_stats(stats, sum(record.length for record in stored), device, began)

    def iterate(
        self, records: Sequence[TensorInfo], device: torch.device, *, reporter: ProgressReporter
    ) -> Generator[tuple[TensorInfo, torch.Tensor]]:
        """Yields each tensor on the device, in the order of the files, while later ones are copied.

        A tensor belongs to the caller, who may keep it. Tensors of a group share one allocation, which is freed with
        the last of them.

        Raises:
            DeviceMemoryShort: The device has too little free memory for the buffers and the largest tensor.
            DeviceFailed: The device's driver returned an error.
            CacheDamaged: A file became shorter or can't be read.
        """
        self.warm_up(device)
        began = time.perf_counter()
        stored = [record for record in records if record.length]
        # The caller still has the previous tensor while the next ones are copied.
        needed = _window_peak_bytes(stored) + max((record.length for record in stored), default=0)
        check_free_memory(device, needed, label="The buffers for this load")
        try:
            if stored:
                yield from self._iterate_groups(stored, device, reporter, began)
            for record in records:
                if not record.length:
                    yield record, tensor_without_data(record, device, meta_tensors=self._meta_tensors)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryShort(f"{device} ran out of memory while loading: {error}") from error

    def _iterate_groups(
        self, records: Sequence[TensorInfo], device: torch.device, reporter: ProgressReporter, began: float
    ) -> Iterator[tuple[TensorInfo, torch.Tensor]]:
        groups = pack_groups(records, group_bytes=TEMPORARY_GROUP_BYTES)
        workers = self._acquire_workers(device)
        if workers is None:
            for group in groups:
                yield from self._plain_group(group, device, reporter)
        else:
            with contextlib.closing(workers):
                for group, base in workers.iterate(self._files, groups, window=WINDOW_BYTES, progress=reporter.update):
                    yield from _group_tensors(group, base)
            reporter.finish_phase(_tensor_bytes(groups))
        size = _tensor_bytes(groups)
        self._record_stats((_way(self._options, workers), workers), size, device, began)

    def _plain_group(
        self, group: Group, device: torch.device, reporter: ProgressReporter
    ) -> Iterator[tuple[TensorInfo, torch.Tensor]]:
        ready: list[torch.Tensor] = []
        self._copy_plain([group], device, lambda _, base: ready.append(base), reporter)
        yield from _group_tensors(group, ready.pop())

    def _stream_groups(
        self,
        records: Sequence[TensorInfo],
        device: torch.device,
        use: Callable[[TensorInfo, torch.Tensor], None],
        reporter: ProgressReporter,
    ) -> tuple[str, Workers | None]:
        def hand_out(group: Group, base: torch.Tensor) -> None:
            for record, tensor in _group_tensors(group, base):
                use(record, tensor)

        groups = pack_groups(records, group_bytes=TEMPORARY_GROUP_BYTES)
        return self._run(groups, device, hand_out, reporter, window=WINDOW_BYTES)

    def _run(
        self,
        groups: Sequence[Group],
        device: torch.device,
        on_group: Callable[[Group, torch.Tensor], None],
        reporter: ProgressReporter,
        *,
        window: int = 0,
    ) -> tuple[str, Workers | None]:
        """Copies the groups; returns the way of copying, and the workers if there were any."""
        workers = self._acquire_workers(device)
        if workers is None:
            self._copy_plain(groups, device, on_group, reporter)
            return "plain", None
        try:
            workers.run(self._files, groups, on_group=on_group, window=window, progress=reporter.update)
        finally:
            workers.close()
        reporter.finish_phase(_tensor_bytes(groups))
        return _way(self._options, workers), workers

    def _copy_plain(
        self,
        groups: Sequence[Group],
        device: torch.device,
        on_group: Callable[[Group, torch.Tensor], None],
        reporter: ProgressReporter,
    ) -> None:
        """Copies from the mapping with PyTorch, for devices without an engine."""
        done = 0
        for group in groups:
            base = torch.empty(group.size, dtype=torch.uint8, device=device)
            for extent in group.extents:
                mapping = self._files[extent.file].mapping()
                source = torch.frombuffer(mapping, dtype=torch.uint8, count=extent.length, offset=extent.source)
                base[extent.target : extent.target + extent.length].copy_(source)
                done += extent.length
                reporter.update(done)
            on_group(group, base)
        reporter.finish_phase(_tensor_bytes(groups))

    def _acquire_workers(self, device: torch.device) -> Workers | None:
        if self._warm_workers is not None:
            ready, workers = self._warm_workers
            self._warm_workers = None
            if ready == device and suits(workers, self._files, self._options):
                return workers
            workers.close()
        return self._start_workers(device)

    def _start_workers(self, device: torch.device) -> Workers | None:
        if self._options.way == "plain":
            return None
        engine = self._engine_factory(device)
        if engine is None:
            return None
        workers = new_workers(engine, self._options, self._files)
        workers.start()
        return workers

    def _record_stats(self, result: tuple[str, Workers | None], size: int, device: torch.device, began: float) -> None:
        way, workers = result
        now = time.perf_counter()
        self.last_copy = CopyStats(
            way=way,
            device=str(device),
            tensor_bytes=size,
            seconds=now - began,
            allocate_seconds=max(workers.allocated_at - began, 0.0) if workers is not None else 0.0,
            threads=workers.threads if workers is not None else 1,
            pinned_bytes=workers.pinned_bytes if workers is not None else 0,
            native=isinstance(workers, NativeWorkers),
        )


def cpu_tensor(
    record: TensorInfo, files: Sequence[SourceFile], *, dtype: torch.dtype | None, meta_tensors: str
) -> torch.Tensor:
    """Returns a tensor on the CPU: a view of the cache unless it is converted or has no data."""
    if record.length:
        tensor = cpu_view(record, files[record.file])
    else:
        tensor = tensor_without_data(record, "cpu", meta_tensors=meta_tensors)
    return tensor.to(dtype=dtype) if needs_conversion(record, dtype) else tensor


def _group_tensors(group: Group, base: torch.Tensor) -> Iterator[tuple[TensorInfo, torch.Tensor]]:
    for record, offset in group.tensors:
        yield record, group_view(base, record, offset)


def _way(options: CopyOptions, workers: Workers | None) -> str:
    if workers is None:
        return "plain"
    return "register" if options.way == "register" else "ring"


def _tensor_bytes(groups: Sequence[Group]) -> int:
    return sum(record.length for group in groups for record, _ in group.tensors)


def _synchronize(device: torch.device) -> None:
    """Waits for conversions and fills, so that the tensors can be used on any stream."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _peak_bytes(
    groups: Sequence[Group], records: Sequence[TensorInfo], to_convert: Sequence[TensorInfo], dtype: torch.dtype | None
) -> int:
    """Returns the peak bytes of device memory of a load."""
    peak = total_bytes(groups) + sum(nbytes(record) + ALIGNMENT for record in records if not record.length)
    if to_convert and dtype is not None:
        peak += sum(nbytes(record) // record.item_size * dtype.itemsize for record in to_convert)
        peak += _window_peak_bytes(to_convert)
    return peak


def _window_peak_bytes(records: Sequence[TensorInfo]) -> int:
    """Returns the maximum bytes of device memory for temporary groups that exist at once."""
    sizes = [record.length + ALIGNMENT for record in records]
    return min(sum(sizes), max(WINDOW_BYTES, *sizes)) if sizes else 0
