"""Verifies a published entry: reads it and compares all of it with the recorded checksums."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from tonnage.cache.filesystem import open_for_reading, read_range
from tonnage.cache.non_tensor_checksums import non_tensor_ranges, ranges_crc32, tensor_extents
from tonnage.contract import Verify
from tonnage.errors import CacheDamaged, Interrupted, TonnageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tonnage.cache.entry import Entry
    from tonnage.cache.manifest import FileRecord, Manifest, TensorRecord, TensorTable

    ProgressCallback = Callable[[int, int], None]

TASK_BYTES = 64 << 20
"""Bytes of a tensor that one thread checks at a time; the CRCs of tasks are combined."""

READ_BYTES = 1 << 20
"""Bytes of one read: small enough to stay in the CPU cache until the checksum is computed."""

MAX_THREADS = 16


class VerifyResult(NamedTuple):
    """The result of a verification.

    ``verified`` is the lowest level reached by any tensor, at most the requested one. ``seconds`` is wall time,
    ``bytes`` the number of bytes read, ``notes`` sentences about what could not be verified.
    """

    verified: Verify
    tensors: int
    bytes: int
    seconds: float
    notes: tuple[str, ...] = ()


class _VerifyTask(NamedTuple):
    """A range of a tensor, or with ``tensor`` -1 the bytes of ``file`` that belong to no tensor."""

    file: int
    tensor: int
    position: int
    start: int
    end: int


def verify_entry(
    entry: Entry,
    *,
    level: Verify = Verify.CRC32,
    progress: ProgressCallback | None = None,
    canceled: Callable[[], bool] | None = None,
    threads: int = 0,
) -> VerifyResult:
    """Verifies an entry. Damage doesn't stop it, so that the error contains how much is damaged.

    Args:
        entry: A published entry, whose use lock the caller holds.
        level: ``CRC32`` and ``SHA256`` read every byte, the others check only the files' sizes.
        progress: Called from any thread with the bytes read and the total.
        canceled: Polled before each task; return True to cancel.
        threads: Number of reading threads; 0 means one for each CPU, up to 16.

    Raises:
        CacheDamaged: Something has changed. The message names the first file, tensor and offset, and how many more
            are damaged.
        Interrupted: ``canceled`` returned True.
    """
    started = time.monotonic()
    level = level.reachable
    published = entry.read_published()
    if published is None:
        raise CacheDamaged(f"{entry.path} has no published files to verify.")
    manifest, table = published
    entry.check_files(manifest)
    if level.strength <= Verify.SIZE.strength:
        return VerifyResult(level, len(table.tensors), 0, time.monotonic() - started)
    verified, notes = achievable_level(table.tensors, level)
    verifier = _Verifier(entry.model_dir, manifest, table, level, progress, canceled)
    verifier.run(threads or min(len(os.sched_getaffinity(0)), MAX_THREADS))
    return VerifyResult(verified, len(table.tensors), verifier.bytes_done, time.monotonic() - started, notes)


def achievable_level(tensors: Sequence[TensorRecord], level: Verify) -> tuple[Verify, tuple[str, ...]]:
    """Returns the level up to ``level`` at which all tensors can be verified, and notes if it is lower."""
    if level is Verify.SHA256 and any(tensor.sha256 is None for tensor in tensors if tensor.file >= 0):
        lacking = sum(tensor.sha256 is None for tensor in tensors)
        verified, notes = achievable_level(tensors, Verify.CRC32)
        return verified, (*notes, f"{lacking:,} of {len(tensors):,} tensors have no SHA-256 in their source.")
    if level is Verify.CRC32 and (lacking := sum(not tensor.has_checksum for tensor in tensors)):
        note = f"{lacking:,} of {len(tensors):,} tensors have no checksum to compare with, for example encrypted ones."
        return Verify.SIZE, (note,)
    return level, ()


class _Verifier:
    """Runs the tasks in threads. Reading and both checksums release the GIL."""

    def __init__(
        self,
        model: Path,
        manifest: Manifest,
        table: TensorTable,
        level: Verify,
        progress: ProgressCallback | None,
        canceled: Callable[[], bool] | None,
    ) -> None:
        self.bytes_done = 0
        self._model = model
        self._files = manifest.files
        self._tensors = table.tensors
        self._level = level
        self._progress = progress
        self._canceled = canceled
        self._non_tensor_ranges = [
            non_tensor_ranges(extents, file.size, label=file.path)
            for extents, file in zip(tensor_extents(table, len(manifest.files)), manifest.files, strict=True)
        ]
        self._tasks = self._plan_tasks()
        self._total = sum(chunk.end - chunk.start for chunk in self._tasks)
        self._partial_crcs: dict[int, list[tuple[int, int, int]]] = {}
        self._missing: dict[int, int] = {}
        for chunk in self._tasks:
            self._missing[chunk.tensor] = self._missing.get(chunk.tensor, 0) + 1
        self._damage: list[tuple[int, int, str]] = []
        self._failure: TonnageError | None = None
        self._stop = False
        self._lock = threading.Lock()
        self._next = 0

    def run(self, threads: int) -> None:
        """Runs all tasks.

        Raises:
            CacheDamaged: Something is damaged.
            Interrupted: It was canceled.
        """
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(max(1, threads))]
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join()
        if self._failure is not None:
            raise self._failure
        if self._damage:
            first = min(self._damage)[2]
            more = len(self._damage) - 1
            raise CacheDamaged(first + (f" {more:,} more are damaged." if more else ""))

    def _plan_tasks(self) -> list[_VerifyTask]:
        tasks = [
            _VerifyTask(index, -1, 0, 0, sum(end - start for start, end in self._non_tensor_ranges[index]))
            for index, file in enumerate(self._files)
            if file.rest_crc32 is not None
        ]
        for index, tensor in enumerate(self._tensors):
            if tensor.file < 0 or not tensor.has_checksum:
                continue
            whole = self._by_sha256(tensor)
            step = max(tensor.length, 1) if whole else TASK_BYTES
            for position, start in enumerate(range(0, max(tensor.length, 1), step)):
                tasks.append(_VerifyTask(tensor.file, index, position, start, min(start + step, tensor.length)))
        return sorted(tasks, key=lambda chunk: chunk.start - chunk.end)  # longest first, to finish evenly

    def _by_sha256(self, tensor: TensorRecord) -> bool:
        return (self._level is Verify.SHA256 or tensor.crc32 is None) and tensor.sha256 is not None

    def _work(self) -> None:
        buffer = memoryview(bytearray(READ_BYTES))
        while (task := self._next_task()) is not None:
            try:
                self._verify_task(task, buffer)
            except CacheDamaged as error:
                self._record_damage(task, error.message)
            except TonnageError as error:
                self._fail(error)
            except OSError as error:
                self._record_damage(
                    task, f"{self._model / self._files[task.file].path} can't be read: {error.strerror}."
                )
            self._count(task)

    def _next_task(self) -> _VerifyTask | None:
        with self._lock:
            if self._canceled is not None and not self._stop and self._canceled():
                self._stop = True
                self._failure = Interrupted("Interrupted while verifying; the entry is unchanged.")
            if self._stop or self._next == len(self._tasks):
                return None
            self._next += 1
            return self._tasks[self._next - 1]

    def _verify_task(self, task: _VerifyTask, buffer: memoryview) -> None:
        file = self._files[task.file]
        path = self._model / file.path
        if task.tensor < 0:
            self._verify_non_tensor_bytes(path, file, self._non_tensor_ranges[task.file])
            return
        tensor = self._tensors[task.tensor]
        if self._by_sha256(tensor):
            digest = hashlib.sha256(tensor.header)
            for data in _read_range(path, tensor.offset, tensor.offset + tensor.length, buffer):
                digest.update(data)
            _compare(path, tensor, "SHA-256", digest.hexdigest(), tensor.sha256 or "")
            return
        crc = _range_crc32(path, tensor.offset + task.start, tensor.offset + task.end, buffer)
        with self._lock:
            partial_crcs = self._partial_crcs.setdefault(task.tensor, [])
            partial_crcs.append((task.position, crc, task.end - task.start))
            complete = len(partial_crcs) == self._missing[task.tensor]
        if complete:
            _compare(path, tensor, "CRC-32", f"{_tensor_crc32(tensor, partial_crcs):08x}", f"{tensor.crc32:08x}")

    def _verify_non_tensor_bytes(self, path: Path, file: FileRecord, ranges: list[tuple[int, int]]) -> None:
        found = ranges_crc32(path, ranges)
        if found != file.rest_crc32:
            what = "the file" if file.kind in {"companion", "index"} else "its bytes outside of tensors"
            raise CacheDamaged(f"{path} was changed: the CRC-32 of {what} is {found:08x}, not {file.rest_crc32:08x}.")

    def _record_damage(self, task: _VerifyTask, message: str) -> None:
        with self._lock:
            offset = -1 if task.tensor < 0 else self._tensors[task.tensor].offset
            self._damage.append((task.file, offset, message))

    def _fail(self, error: TonnageError) -> None:
        with self._lock:
            self._failure = self._failure or error
            self._stop = True

    def _count(self, task: _VerifyTask) -> None:
        with self._lock:
            self.bytes_done += task.end - task.start
            done = self.bytes_done
        if self._progress is not None:
            self._progress(done, self._total)


def _range_crc32(path: Path, start: int, end: int, buffer: memoryview) -> int:
    from isal import isal_zlib

    crc = 0
    for data in _read_range(path, start, end, buffer):
        crc = isal_zlib.crc32(data, crc)
    return crc


def _tensor_crc32(tensor: TensorRecord, partial_crcs: list[tuple[int, int, int]]) -> int:
    from isal import isal_zlib

    crc: int = isal_zlib.crc32(tensor.header)
    for _, part, length in sorted(partial_crcs):
        crc = isal_zlib.crc32_combine(crc, part, length)
    return crc


def _read_range(path: Path, start: int, end: int, buffer: memoryview) -> Iterator[memoryview]:
    descriptor = open_for_reading(path)
    try:
        yield from read_range(descriptor, start, end, buffer, path=path)
    finally:
        os.close(descriptor)


def _compare(path: Path, tensor: TensorRecord, what: str, found: str, expected: str) -> None:
    if found != expected:
        raise CacheDamaged(
            f"{path} was changed: the tensor {tensor.name!r} at offset {tensor.offset:,} ({tensor.length:,} bytes) has "
            f"{what} {found}, not {expected}."
        )
