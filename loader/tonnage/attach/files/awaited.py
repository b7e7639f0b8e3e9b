"""Weights that are still being loaded: finds them, and waits for their files."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

from tonnage.attach.errors import EntryIncomplete, LoadRestarted, NotLoadedInTime
from tonnage.attach.files.cache_entry import build_catalog, find_entry, lock_entry, read_entry
from tonnage.attach.files.catalog import read_path
from tonnage.attach.files.source_file import AwaitedFile
from tonnage.attach.files.tensor_info import NO_FILE
from tonnage.cache.entry import Entry
from tonnage.cache.stream import (
    STREAM_TABLE,
    failure_path,
    read_failure,
    read_stream_table,
    request_stream,
    stream_path,
)
from tonnage.errors import CacheNotWritable, TonnageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path, PurePosixPath

    from tonnage.attach.files.catalog import Catalog
    from tonnage.attach.files.source_file import SourceFile
    from tonnage.attach.files.tensor_info import TensorInfo
    from tonnage.cache.locks import FileLock
    from tonnage.cache.manifest import FileRecord
    from tonnage.cache.stream import StreamTable

POLL_SECONDS = 0.05
_STATUS_FOLDER = ".tonnage"
_STATUS_FILE = "status"


class Opened(NamedTuple):
    """Weights whose files are there, or are awaited."""

    catalog: Catalog
    lock: FileLock | None
    awaited: AwaitedFiles | None


class AwaitedFiles:
    """Waits for the files of one set of weights.

    Args:
        place: Where the load shows them.
        table: What it will show.
        catalog: The files, all of them ``AwaitedFile``, and their tensors.
        rank: The rank that was requested.
        limit: How long to wait.
    """

    def __init__(self, place: _Place, table: _Seen, catalog: Catalog, *, rank: int | None, limit: _WaitLimit) -> None:
        self._place = place
        self._seen = table
        self._catalog = catalog
        self._rank = rank
        self._limit = limit
        self._pending = {number: file for number, file in enumerate(catalog.files) if isinstance(file, AwaitedFile)}

    def batches(self, records: Sequence[TensorInfo]) -> Iterator[list[TensorInfo]]:
        """Yields the tensors in the order in which their files become complete, each once.

        Raises:
            TonnageError: The load failed; the error is the loader's own.
            NotLoadedInTime: The timeout passed.
            LoadRestarted: The load was started over with other files.
            CacheDamaged: A file can't be opened.
        """
        left: dict[int, list[TensorInfo]] = {}
        for record in records:
            left.setdefault(record.file, []).append(record)
        while left:
            ready = [number for number in left if number == NO_FILE or self._is_open(number)]
            if ready:
                yield [record for number in ready for record in left.pop(number)]
            else:
                self._wait(f"{len(self._pending)} of {len(self._catalog.files)} files with tensors are missing")

    def wait_for(self, record: TensorInfo) -> None:
        """Waits for the file of one tensor. Raises as ``batches`` does."""
        for _ in self.batches([record]):
            pass

    def open_files(self) -> list[SourceFile]:
        """Returns the files by number, with any that is open in place of those that are not yet."""
        files = self._catalog.files
        stand_in = next((file for number, file in enumerate(files) if number not in self._pending), None)
        return [
            stand_in if stand_in is not None and number in self._pending else file for number, file in enumerate(files)
        ]

    def _is_open(self, number: int) -> bool:
        file = self._pending.get(number)
        if file is None:
            return True
        if not file.try_open():
            return False
        del self._pending[number]
        return True

    def _wait(self, what: str) -> None:
        self._place.check_failure(self._limit)
        self._check_table()
        self._limit.sleep(f"{self._place.label}: {what}")

    def _check_table(self) -> None:
        """Compares a table that was replaced with the one that was opened."""
        if _identity(self._place.directory) in {None, self._seen.identity}:
            return
        seen = _look(self._place.directory)
        if seen is None:
            return
        try:
            other = _awaited_catalog(self._place, seen.table, rank=self._rank)
            same = other.records == self._catalog.records and [(file.path, file.size) for file in other.files] == [
                (file.path, file.size) for file in self._catalog.files
            ]
        except TonnageError:
            same = False
        if not same:
            raise LoadRestarted(f"The load of {self._place.label} was started over, with other files than before.")
        self._seen = seen


class _Seen(NamedTuple):
    """A table and the identity of its file."""

    table: StreamTable
    identity: tuple[int, int]


class _WaitLimit:
    """How long to wait: until a deadline, for ever (None), or not at all (0)."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.began = time.time()
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def sleep(self, what: str) -> None:
        if self.timeout == 0:
            raise EntryIncomplete(f"{what}.")
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise NotLoadedInTime(f"{what} after {self.timeout:g} seconds.")
        time.sleep(POLL_SECONDS)


class _Place(NamedTuple):
    """Where a load shows its files, and where it records a failure."""

    directory: Path
    status_path: Path
    entry: Entry | None = None

    @property
    def label(self) -> str:
        return str(self.directory if self.entry is None else self.entry.path)

    def check_failure(self, limit: _WaitLimit) -> None:
        """Raises the loader's own error if the load failed. Of an entry, earlier failures than the wait don't count."""
        if self.entry is not None:
            try:
                if self.status_path.stat().st_mtime < limit.began:
                    return
            except OSError:
                return
        error = read_failure(self.status_path)
        if error is not None:
            raise error


def open_now(path: Path, *, rank: int | None) -> Opened:
    """Opens weights that are loaded.

    Raises:
        EntryIncomplete: Their load is not finished, or the entry was evicted.
        TonnageError: They can't be opened; see ``tonnage.attach.open_weights``.
    """
    found = find_entry(path)
    if found is None:
        if not (path / STREAM_TABLE).exists():
            return Opened(read_path(path, rank=rank), None, None)
        opened = _open_directory(path, rank=rank, limit=_WaitLimit(0))
        if opened.awaited is not None:
            for _ in opened.awaited.batches(list(opened.catalog.records.values())):
                pass
        return opened
    with contextlib.ExitStack() as undo:
        lock = lock_entry(found[0])
        undo.callback(lock.release)
        catalog = read_entry(*found, rank=rank)
        undo.pop_all()
    return Opened(catalog, lock, None)


def open_awaited(path: Path, *, rank: int | None, timeout: float | None) -> Opened:
    """Opens weights that may still be being loaded, as soon as their table is there.

    Args:
        path: An entry or its ``model`` folder, the directory that a pod sees, or other weights, which are opened at
            once. An entry need not exist yet.
        rank: The rank to open.
        timeout: Seconds; None waits without a limit, 0 not at all.

    Raises:
        TonnageError: The load failed, or the weights can't be opened.
        NotLoadedInTime: The timeout passed.
        EntryIncomplete: With a timeout of 0: files are missing.
    """
    limit = _WaitLimit(timeout)
    while True:
        found = find_entry(path)
        if found is not None and Entry(found[0]).use_lock_path.exists():
            return _open_entry(Entry(found[0]), found[1], rank=rank, limit=limit)
        if found is None and path.exists():
            return _open_directory(path, rank=rank, limit=limit)
        limit.sleep(f"{path} does not exist")


def find_stream(path: Path) -> StreamTable | None:
    """Returns the table of a directory that a pod sees while its weights are loaded; None of other directories.

    Raises:
        CacheDamaged: The table can't be read.
    """
    return read_stream_table(path) if (path / STREAM_TABLE).exists() else None


def _open_directory(path: Path, *, rank: int | None, limit: _WaitLimit) -> Opened:
    """Opens what a pod sees: the loader, in another container, lets the pod start when the table is there."""
    place = _Place(path, path.absolute().parent / _STATUS_FOLDER / path.absolute().name / _STATUS_FILE)
    if not (path / STREAM_TABLE).exists():
        place.check_failure(limit)
        return Opened(read_path(path, rank=rank), None, None)
    while (seen := _look(path)) is None:
        place.check_failure(limit)
        limit.sleep(f"{path / STREAM_TABLE} is of another boot of the machine")
    return _open_seen(place, seen, None, rank=rank, limit=limit)


def _open_entry(entry: Entry, subpath: PurePosixPath, *, rank: int | None, limit: _WaitLimit) -> Opened:
    place = _Place(entry.stream_dir, failure_path(entry), entry)
    with contextlib.ExitStack() as undo:
        lock = lock_entry(entry.path)
        undo.callback(lock.release)
        while entry.read_manifest() is None:
            _request(entry)
            seen = _look(place.directory)
            if seen is not None:
                opened = _open_seen(place, seen, lock, rank=rank, limit=limit)
                undo.pop_all()
                return opened
            place.check_failure(limit)
            limit.sleep(f"Nothing is loaded in {entry.path}")
        catalog = read_entry(entry.path, subpath, rank=rank)
        undo.pop_all()
        return Opened(catalog, lock, None)


def _request(entry: Entry) -> None:
    try:
        request_stream(entry)
    except CacheNotWritable:  # another user's entry: it is opened when it is published
        return


def _open_seen(place: _Place, seen: _Seen, lock: FileLock | None, *, rank: int | None, limit: _WaitLimit) -> Opened:
    catalog = _awaited_catalog(place, seen.table, rank=rank)
    return Opened(catalog, lock, AwaitedFiles(place, seen, catalog, rank=rank, limit=limit))


def _awaited_catalog(place: _Place, table: StreamTable, *, rank: int | None) -> Catalog:
    def awaited(file: FileRecord) -> SourceFile:
        published = None if place.entry is None else place.entry.model_dir / file.path
        return AwaitedFile(stream_path(place.directory, file), file.size, other_path=published)

    catalog = build_catalog(
        table.manifest,
        table.table,
        rank=rank,
        label=place.label,
        table_label=str(place.directory / STREAM_TABLE),
        open_file=awaited,
    )
    if not table.is_published:
        del catalog.metadata["tonnage.verified"]
    return catalog


def _look(directory: Path) -> _Seen | None:
    """Returns the table of a directory, if it has a valid one."""
    identity = _identity(directory)
    table = None if identity is None else read_stream_table(directory)
    return None if identity is None or table is None else _Seen(table, identity)


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        found = (directory / STREAM_TABLE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
