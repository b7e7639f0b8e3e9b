"""``Weights``: opened model files as a mapping of names to tensors."""

from __future__ import annotations

import contextlib
import difflib
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from tonnage.attach.copy.device_copier import DeviceCopier, check_dtype, cpu_tensor, needs_conversion
from tonnage.attach.copy.tensor_views import torch_dtype
from tonnage.attach.device.lookup import DeviceLike, engine_for, find_device
from tonnage.attach.errors import KeyNotFound, WeightsClosed
from tonnage.attach.files.awaited import find_stream, open_awaited, open_now
from tonnage.attach.files.cache_entry import entry_ranks, find_entry
from tonnage.attach.files.catalog import find_ranks
from tonnage.attach.files.source_file import reserve_descriptors
from tonnage.attach.files.tensor_info import NO_FILE
from tonnage.attach.module_loading import LoadResult, TensorSource, load_into_module
from tonnage.attach.progress import ProgressReporter, check_progress
from tonnage.attach.unflatten import unflatten
from tonnage.errors import InvalidPlan
from tonnage.format.tensor_names import short_repr

if TYPE_CHECKING:
    import os

    from tonnage.attach.copy_options import CopyOptions, CopyStats
    from tonnage.attach.device.engine import Engine
    from tonnage.attach.files.awaited import AwaitedFiles
    from tonnage.attach.files.catalog import Catalog
    from tonnage.attach.files.source_file import SourceFile
    from tonnage.attach.files.tensor_info import TensorInfo
    from tonnage.attach.progress import Progress
    from tonnage.cache.locks import FileLock

_NAMES_IN_ERROR = 5
_DESCRIPTORS = 128
"""As many files as most models have, and some that the device's driver opens."""


class Weights(Mapping[str, torch.Tensor]):
    """Tensors by name, returned by ``tonnage.open``. Opening reads no tensor data.

    On the CPU a tensor is a view of the cache's own memory, which all processes share. Writing to a tensor copies the
    written pages, for this process only; the cache never changes. ``close()``, or leaving the context, releases files
    and the entry's lock. Tensors returned before stay valid: the memory is unmapped with the last of them.

    Attributes:
        path: The path that was opened.
        metadata: Metadata of the files' headers; of a cache entry also ``tonnage.revision``, ``tonnage.digest``,
            ``tonnage.layout`` and ``tonnage.verified``.
        nbytes: Bytes of all tensors' data.
    """

    def __init__(
        self,
        path: Path,
        catalog: Catalog,
        lock: FileLock | None,
        copier: DeviceCopier,
        *,
        meta_tensors: Literal["zeros", "meta"],
        awaited: AwaitedFiles | None = None,
    ) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = types.MappingProxyType(catalog.metadata)
        self.nbytes = sum(record.length for record in catalog.records.values())
        self._records = catalog.records
        self._files = catalog.files
        self._meta_tensors = meta_tensors
        self._copier = copier
        self._awaited = awaited
        copier.set_files(catalog.files)
        self._finalizer = weakref.finalize(self, _release_resources, catalog, lock, copier)

    @property
    def closed(self) -> bool:
        return not self._finalizer.alive

    @property
    def records(self) -> Mapping[str, TensorInfo]:
        """Dtype, shape, file, offset and length of each tensor, from the headers."""
        return types.MappingProxyType(self._records)

    def file_of(self, name: str) -> Path | None:
        """Returns the file that has a tensor's data; None for a meta tensor."""
        number = self._records[name].file
        return self._files[number].path if number != NO_FILE else None

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The files that hold the tensors, open until the weights are closed."""
        return self._files

    @property
    def last_copy(self) -> CopyStats | None:
        """Statistics of the last copy to a device; None before the first."""
        return self._copier.last_copy

    def __getitem__(self, key: str) -> torch.Tensor:
        """Returns a tensor on the CPU.

        Raises:
            KeyNotFound: No tensor has this name; a ``KeyError``.
            WeightsClosed: The weights were closed.
            DtypeUnknown: This PyTorch version does not have the tensor's dtype.
        """
        self._check_open()
        try:
            record = self._records[key]
        except (KeyError, TypeError):
            raise self._key_error([key]) from None
        self._wait_for(record)
        return cpu_tensor(record, self._files, dtype=None, meta_tensors=self._meta_tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: object) -> bool:
        return key in self._records

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"<Weights {self.path}: {len(self):,} tensors, {self.nbytes:,} bytes{state}>"

    def state_dict(
        self,
        device: DeviceLike = "cpu",
        *,
        keys: Iterable[str] | None = None,
        filter: Callable[[str], bool] | None = None,  # noqa: A002  # the usual name
        dtype: torch.dtype | None = None,
        nested: bool = False,
        progress: Progress = "auto",
    ) -> Any:  # noqa: ANN401  # a dict of tensors, or nested dicts and lists
        """Returns tensors by name: views on the CPU, or copies on a device.

        Args:
            device: The tensors' device. ``meta`` returns shapes without data.
            keys: Only these names, in this order.
            filter: Only the names for which this function returns true.
            dtype: Converts float16, bfloat16, float32 and float64 tensors to this dtype; others are not converted.
            nested: Return the original dicts and lists instead of flat names; lists have None for omitted items.
            progress: A callback with (bytes done, bytes in all); ``auto``: a bar if standard error is a terminal and
                the copy takes more than a second; ``off``.

        Raises:
            KeyNotFound: Some of ``keys`` do not exist.
            DeviceNotFound: The device does not exist.
            DeviceMemoryShort: The device has too little free memory. Nothing was copied.
            DeviceFailed: The device's driver returned an error.
            CacheDamaged: A file became shorter or can't be read.
            InvalidPlan: ``dtype`` is not a floating type, or ``progress`` is invalid.
            WeightsClosed: The weights were closed.
        """
        self._check_open()
        check_dtype(dtype)
        check_progress(progress)
        target_device = find_device(device)
        records = self._select(keys, filter)
        with self._reporter(progress, records) as reporter:
            tensors = self._load(records, target_device, dtype, reporter)
        if not nested:
            return tensors
        by_path = {self._records[name].path: tensor for name, tensor in tensors.items()}
        return unflatten(by_path, all_paths=[record.path for record in self._records.values()])

    def nested(
        self,
        device: DeviceLike = "cpu",
        *,
        keys: Iterable[str] | None = None,
        filter: Callable[[str], bool] | None = None,  # noqa: A002
        dtype: torch.dtype | None = None,
        progress: Progress = "auto",
    ) -> Any:  # noqa: ANN401
        """Returns ``state_dict(..., nested=True)``."""
        return self.state_dict(device, keys=keys, filter=filter, dtype=dtype, nested=True, progress=progress)

    def stream(
        self,
        device: DeviceLike = "cpu",
        *,
        keys: Iterable[str] | None = None,
        filter: Callable[[str], bool] | None = None,  # noqa: A002
        progress: Progress = "auto",
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Iterates over names and tensors, in the order of the files: views on the CPU, copies on a device.

        On a device, later tensors are copied while the caller uses one. Each may be kept: its memory is not used again.
        Tensors that are not kept are freed, so that the device needs at most 240 MiB or two of the largest tensors more
        than what is kept.

        Args:
            device: The tensors' device, not ``meta``.
            keys: Only these names.
            filter: Only the names for which this function returns true.
            progress: As in ``state_dict``.

        Raises:
            KeyNotFound: Some of ``keys`` do not exist.
            DeviceNotFound: The device does not exist.
            DeviceMemoryShort: The device has too little free memory.
            DeviceFailed: The device's driver returned an error.
            CacheDamaged: A file became shorter or can't be read.
            InvalidPlan: ``device`` is ``meta``, or ``progress`` is invalid.
            WeightsClosed: The weights were closed.
        """
        self._check_open()
        check_progress(progress)
        target_device = find_device(device)
        if target_device.type == "meta":
            raise InvalidPlan("Tensors can't be streamed to the meta device, which holds no data.")
        records = self._select(keys, filter)
        return self._iterate(records, target_device, progress)

    def load_into(
        self,
        module: torch.nn.Module,
        device: DeviceLike | None = None,
        *,
        strict: bool = True,
        dtype: torch.dtype | None = None,
        progress: Progress = "auto",
    ) -> LoadResult:
        """Loads these weights into a module.

        Parameters and buffers that are on the target device already are overwritten in place; those on the meta device
        or another device get new memory (on the CPU: the cache's own). A parameter with several names (tied weights)
        stays one parameter, and the weights need only one of the names. Non-persistent buffers are loaded if the
        weights have them. The module decides what is a parameter and what is a buffer, not the weights.

        Args:
            module: A module built from the config of the weights.
            device: The target device; None: each tensor's own, and the CPU for those on the meta device.
            strict: Reject missing and unexpected names and different dtypes. If false, the names that both have are
                loaded and converted to the module's dtype. Different shapes are always rejected.
            dtype: Converts the module's floating tensors to this dtype.
            progress: As in ``state_dict``.

        Returns:
            The names that were not loaded, and those still on the meta device because the weights don't have them.

        Raises:
            ModuleMismatch: Module and weights do not match. All mismatches are listed, and nothing was changed.
            DeviceNotFound: The device does not exist.
            DeviceMemoryShort: The device has too little free memory. Nothing was copied.
            DeviceFailed: The device's driver returned an error.
            CacheDamaged: A file became shorter or can't be read.
            InvalidPlan: ``dtype`` is not a floating type, ``device`` is ``meta``, or ``progress`` is invalid.
            WeightsClosed: The weights were closed.
        """
        self._check_open()
        check_dtype(dtype)
        check_progress(progress)
        target_device = None if device is None else find_device(device)
        if target_device is not None and target_device.type == "meta":
            raise InvalidPlan("A module can't be loaded onto the meta device, which holds no data.")
        return load_into_module(
            module,
            self._records,
            TensorSource(self._view, partial(self._reporter, progress), self._load, self._stream),
            device=target_device,
            strict=strict,
            dtype=dtype,
            label=str(self.path),
        )

    def close(self) -> None:
        """Releases files, the entry's lock and buffers. Tensors returned before stay valid. Idempotent."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(
        self, records: list[TensorInfo], device: torch.device, dtype: torch.dtype | None, reporter: ProgressReporter
    ) -> dict[str, torch.Tensor]:
        if device.type == "meta":
            return {
                record.name: torch.empty(
                    record.shape, device="meta", dtype=dtype if needs_conversion(record, dtype) else torch_dtype(record)
                )
                for record in records
            }
        found: dict[str, torch.Tensor] = {}
        for batch in self._batches(records):
            if device.type != "cpu":
                found |= self._copier.load(batch, device, dtype=dtype, reporter=reporter)
                continue
            for record in batch:
                found[record.name] = cpu_tensor(record, self._files, dtype=dtype, meta_tensors=self._meta_tensors)
                reporter.finish_phase(record.length)
        return {record.name: found[record.name] for record in records}

    def _stream(
        self,
        records: list[TensorInfo],
        device: torch.device,
        use: Callable[[TensorInfo, torch.Tensor], None],
        reporter: ProgressReporter,
    ) -> None:
        for batch in self._batches(records):
            if device.type != "cpu":
                self._copier.stream(batch, device, use, reporter=reporter)
                continue
            for record in batch:
                use(record, self._view(record))
                reporter.finish_phase(record.length)

    def _iterate(
        self, records: list[TensorInfo], device: torch.device, progress: Progress
    ) -> Iterator[tuple[str, torch.Tensor]]:
        with self._reporter(progress, records) as reporter:
            for batch in self._batches(records):
                if device.type != "cpu":
                    for record, tensor in self._copier.iterate(batch, device, reporter=reporter):
                        yield record.name, tensor
                    continue
                for record in batch:
                    yield record.name, cpu_tensor(record, self._files, dtype=None, meta_tensors=self._meta_tensors)
                    reporter.finish_phase(record.length)

    def _batches(self, records: list[TensorInfo]) -> Iterator[list[TensorInfo]]:
        """Yields the tensors: all at once, or while they are loaded in the order in which their files are complete."""
        if self._awaited is None:
            yield records
            return
        for batch in self._awaited.batches(records):
            self._check_open()
            self._copier.set_files(self._awaited.open_files())
            yield batch

    def _wait_for(self, record: TensorInfo) -> None:
        if self._awaited is not None:
            self._awaited.wait_for(record)

    def _view(self, record: TensorInfo) -> torch.Tensor:
        self._wait_for(record)
        return cpu_tensor(record, self._files, dtype=None, meta_tensors="zeros")

    def _reporter(self, progress: Progress, records: list[TensorInfo]) -> ProgressReporter:
        return ProgressReporter(progress, sum(record.length for record in records), description=self.path.name)

    def _select(self, keys: Iterable[str] | None, predicate: Callable[[str], bool] | None) -> list[TensorInfo]:
        if keys is None:
            names = list(self._records)
        else:
            if isinstance(keys, str):
                raise InvalidPlan(f"keys={keys!r} is one string; pass a list of names.")
            names = list(dict.fromkeys(keys))
            unknown = [name for name in names if name not in self._records]
            if unknown:
                raise self._key_error(unknown)
        return [self._records[name] for name in names if predicate is None or predicate(name)]

    def _key_error(self, names: list[Any]) -> KeyNotFound:
        described = []
        for name in names[:_NAMES_IN_ERROR]:
            near = difflib.get_close_matches(name, self._records, n=3, cutoff=0.5) if isinstance(name, str) else []
            hint = f" (nearest: {', '.join(map(short_repr, near))})" if near else ""
            described.append(f"{short_repr(name) if isinstance(name, str) else repr(name)}{hint}")
        more = f" and {len(names) - _NAMES_IN_ERROR} more" if len(names) > _NAMES_IN_ERROR else ""
        return KeyNotFound(f"{self.path} has no tensor {', '.join(described)}{more}.")

    def _check_open(self) -> None:
        if self.closed:
            raise WeightsClosed(f"The weights of {self.path} were closed.")


def open_path(
    path: str | os.PathLike[str],
    *,
    rank: int | None,
    device: DeviceLike | None,
    meta_tensors: Literal["zeros", "meta"],
    options: CopyOptions,
    engine_factory: Callable[[torch.device], Engine | None] = engine_for,
    wait: bool = False,
    timeout: float | None = None,
) -> Weights:
    """Opens weights; see ``tonnage.attach.open_weights``. Tests pass ``engine_factory`` to copy without a GPU."""
    weights_path = Path(path)
    target = None if device is None else find_device(device)
    copier = DeviceCopier(options, meta_tensors=meta_tensors, engine_factory=engine_factory)
    with contextlib.ExitStack() as undo:
        undo.callback(copier.close)
        if target is not None and target.type not in {"cpu", "meta"}:
            copier.warm_up(target)
            reserve_descriptors(_DESCRIPTORS)
        opened = open_awaited(weights_path, rank=rank, timeout=timeout) if wait else open_now(weights_path, rank=rank)
        undo.pop_all()
    return Weights(weights_path, opened.catalog, opened.lock, copier, meta_tensors=meta_tensors, awaited=opened.awaited)


def find_weight_ranks(path: Path) -> frozenset[int]:
    """Returns the ranks that weights are sharded by; empty if they are not.

    Raises:
        EntryIncomplete: The entry's load is not finished, or the entry was evicted.
        NoTensorFiles: The path has no weights.
        CacheDamaged: The directory can't be listed, or its index is damaged.
    """
    entry = find_entry(path)
    if entry is not None:
        return entry_ranks(entry[0])
    stream = find_stream(path)
    return find_ranks(path) if stream is None else stream.ranks


def _release_resources(catalog: Catalog, lock: FileLock | None, copier: DeviceCopier) -> None:
    copier.close()
    catalog.close()
    if lock is not None:
        lock.release()
