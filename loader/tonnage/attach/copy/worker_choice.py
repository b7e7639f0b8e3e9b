"""Chooses between the compiled ring and Python's threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.attach.copy.native_workers import NativeWorkers
from tonnage.attach.copy.reader import find_memory_backed
from tonnage.attach.copy.workers import CopyWorkers
from tonnage.attach.native.library import native_library

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.attach.copy_options import CopyOptions
    from tonnage.attach.device.engine import Engine
    from tonnage.attach.files.source_file import SourceFile

Workers = NativeWorkers | CopyWorkers


def new_workers(engine: Engine, options: CopyOptions, files: Sequence[SourceFile]) -> Workers:
    """Returns workers for these files, not started; without files, those for a cache in memory."""
    library = native_library()
    if library is None or not engine.has_native_queue or not allows_ring(options) or not are_in_memory(files, options):
        return CopyWorkers(engine, options)
    return NativeWorkers(library, engine, options)


def suits(workers: Workers, files: Sequence[SourceFile], options: CopyOptions) -> bool:
    """Returns whether workers that were started before the files were opened can copy these files well."""
    return isinstance(workers, CopyWorkers) or are_in_memory(files, options)


def allows_ring(options: CopyOptions) -> bool:
    """Returns whether the options leave the compiled ring possible."""
    return options.native and options.way in {"auto", "ring"}


def are_in_memory(files: Sequence[SourceFile], options: CopyOptions) -> bool:
    """Returns whether no file is read with direct I/O, which is left to Python's threads: disks are the limit there."""
    if options.direct == "auto":
        return all(find_memory_backed(files))
    return options.direct == "never"
