"""An entry of the cache: its files, locks and state.

::

    <entry>/model/                the published files, read-only
    <entry>/.tonnage/use.lock     shared: in use; exclusive: being removed
    <entry>/.tonnage/load.lock    exclusive: being loaded, published, recovered
    <entry>/.tonnage/partial/     a directory for each unfinished load, see ``partial``
    <entry>/stream/               what readers see that start before the load has ended, see ``stream``
    <entry>/.tonnage/manifest.json, tensors.json

Acquire ``use.lock`` (shared) before ``load.lock``. Lock files are never removed.

A flat entry is a folder of the user that has the published files itself, beside files of others: its ``model_dir`` is
the folder. ``.tonnage/files.json`` lists the names that loads have published there or are about to, or is empty; no
other file is ever changed.
"""

from __future__ import annotations

import enum
import stat
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tonnage.cache.filesystem import create_empty_file, file_sizes, make_directory, read_file, write_atomically
from tonnage.cache.locks import FileLock, LockMode, make_lock_file
from tonnage.cache.manifest import (
    MAX_MANIFEST_BYTES,
    MAX_TABLE_BYTES,
    Manifest,
    TensorTable,
    decode_manifest,
    decode_table,
    is_safe_relative_path,
)
from tonnage.cache.medium import in_memory
from tonnage.contract.plan import DECODE_ERRORS
from tonnage.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

PRIVATE_DIRECTORY = ".tonnage"
MODEL_DIRECTORY = "model"
STREAM_DIRECTORY = "stream"
FLAT_FILES = "files.json"
"""In the private directory of a flat entry: the names of its files."""


class EntryState(enum.StrEnum):
    """The state of an entry."""

    EMPTY = "empty"
    PARTIAL = "partial"
    """Nothing published, but data that a load can resume."""
    READY = "ready"
    DAMAGED = "damaged"
    """The files don't match the manifest, or the manifest can't be read."""


class EntryStatus(NamedTuple):
    """State and manifest of an entry. ``problem`` is a sentence; empty unless the entry is damaged."""

    state: EntryState
    manifest: Manifest | None
    problem: str


class Published(NamedTuple):
    """A manifest and its tensor table."""

    manifest: Manifest
    table: TensorTable


class Entry:
    """An entry. The constructor doesn't access the disk.

    Attributes:
        is_flat: Whether ``path`` has the files itself, beside those of others.
        overwrites: Of a flat entry: whether a load may replace files of others, and another revision.
    """

    def __init__(self, path: Path, *, is_flat: bool = False, overwrites: bool = False) -> None:
        self.path = path
        self.name = path.name
        self.is_flat = is_flat
        self.overwrites = overwrites
        self.private_dir = path / PRIVATE_DIRECTORY
        self.model_dir = path if is_flat else path / MODEL_DIRECTORY
        self.use_lock_path = self.private_dir / "use.lock"
        self.load_lock_path = self.private_dir / "load.lock"
        self.partial_dir = self.private_dir / "partial"
        self.stream_dir = (self.private_dir if is_flat else path) / STREAM_DIRECTORY
        self.manifest_path = self.private_dir / "manifest.json"

    @classmethod
    def from_path(cls, path: Path) -> Entry | None:
        """Returns the entry at ``path``, which may also be its ``model`` directory; None if there is none.

        In a serving container, where only the ``model`` directory is mounted, the result is None.
        """
        place = path.absolute()
        folders = (place, place.parent) if place.name == MODEL_DIRECTORY else (place,)
        return next((cls.at(folder) for folder in folders if (folder / PRIVATE_DIRECTORY).is_dir()), None)

    @classmethod
    def at(cls, path: Path) -> Entry:
        """Returns the entry at ``path``, flat or not, as it was created."""
        return cls(path, is_flat=(path / PRIVATE_DIRECTORY / FLAT_FILES).is_file())

    def __repr__(self) -> str:
        return f"Entry({str(self.path)!r})"

    @property
    def in_memory(self) -> bool:
        """Whether the files are in memory, so that nothing needs to be synced."""
        return in_memory(self.path)

    def exists(self) -> bool:
        """Returns whether its directories exist. It may be empty nevertheless."""
        return self.private_dir.is_dir()

    def create(self) -> None:
        """Creates its directories and locks. If they exist, does nothing and needs no write permission.

        Raises:
            CacheNotWritable: They can't be created.
            InsufficientSpace: The medium is full.
        """
        for folder in (self.path, self.private_dir, self.model_dir):
            make_directory(folder)
        for lock in (self.use_lock_path, self.load_lock_path):
            make_lock_file(lock)
        if self.is_flat and not (self.private_dir / FLAT_FILES).exists():
            # Without a lock: another load may recover, which removes temporary files, or record names meanwhile.
            create_empty_file(self.private_dir / FLAT_FILES, sync=not self.in_memory)

    # Files of a flat entry

    def own_names(self) -> set[str]:
        """Returns the names that loads have published in a flat entry, or are about to. Others belong to others."""
        try:
            data = read_file(self.private_dir / FLAT_FILES, limit=MAX_MANIFEST_BYTES)
            names = [] if data is None else msgspec.json.decode(data, type=list[str])
        except (CacheDamaged, *DECODE_ERRORS):
            return set()
        return {name for name in names if is_safe_relative_path(name)}

    def record_names(self, names: Iterable[str]) -> None:
        """Records the names of a flat entry's files.

        Raises:
            CacheNotWritable: They can't be written.
            InsufficientSpace: The medium is full.
        """
        data = msgspec.json.encode(sorted(names))
        write_atomically(self.private_dir / FLAT_FILES, data, sync=not self.in_memory)

    # Locks

    def acquire_use_lock(
        self,
        *,
        deadline: float | None = None,
        canceled: Callable[[], bool] | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> FileLock:
        """Marks the entry as in use until the returned lock is released. Waits for a removal to finish.

        Arguments and further errors are those of ``FileLock.acquire``.

        Raises:
            Timeout: The deadline passed.
            Interrupted: ``canceled`` returned True.
            CacheNotWritable: The entry was not created and can't be.
        """
        lock = FileLock(self.use_lock_path)
        lock.acquire(LockMode.SHARED, deadline=deadline, canceled=canceled, on_wait=on_wait)
        lock.touch()
        return lock

    def try_acquire_exclusive_use_lock(self) -> FileLock | None:
        """Returns the lock that a removal needs, or None while the entry is in use."""
        lock = FileLock(self.use_lock_path)
        return lock if lock.try_acquire(LockMode.EXCLUSIVE) else None

    def acquire_load_lock(
        self,
        *,
        deadline: float | None = None,
        canceled: Callable[[], bool] | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> FileLock:
        """Acquires the lock for loading, waiting for another loader. Check the entry again afterwards: it may be a hit.

        Arguments and further errors are those of ``FileLock.acquire``.

        Raises:
            Timeout: The deadline passed.
            Interrupted: ``canceled`` returned True.
            CacheNotWritable: The entry was not created, or not by this user.
        """
        lock = FileLock(self.load_lock_path)
        lock.acquire(LockMode.EXCLUSIVE, deadline=deadline, canceled=canceled, on_wait=on_wait)
        return lock

    def try_acquire_load_lock(self) -> FileLock | None:
        """Returns the lock for loading, or None while another process holds it."""
        lock = FileLock(self.load_lock_path)
        return lock if lock.try_acquire(LockMode.EXCLUSIVE) else None

    # Reading

    def model_files(self) -> dict[str, int]:
        """Returns the size of each of its files in ``model_dir``, by relative path.

        Raises:
            CacheDamaged: Something there is neither a file nor a directory, or can't be read.
        """
        if not self.is_flat:
            return file_sizes(self.model_dir)
        found = {}
        for name in self.own_names():
            try:
                place = (self.model_dir / name).lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise CacheDamaged(f"{self.model_dir / name} can't be accessed: {error.strerror}.") from error
            if not stat.S_ISREG(place.st_mode):
                raise CacheDamaged(f"{self.model_dir / name} is not a regular file.")
            found[name] = place.st_size
        return found

    def read_manifest(self) -> Manifest | None:
        """Returns the manifest, or None if nothing is published.

        Raises:
            CacheDamaged: It exists but can't be read.
        """
        data = read_file(self.manifest_path, limit=MAX_MANIFEST_BYTES)
        return None if data is None else decode_manifest(data, where=str(self.manifest_path))

    def read_published(self) -> Published | None:
        """Returns the manifest and its tensor table, or None if nothing is published.

        Raises:
            CacheDamaged: One of them can't be read, or the table doesn't match the manifest.
        """
        last: Manifest | None = None
        while (manifest := self.read_manifest()) is not None:
            if manifest.table is None:
                raise CacheDamaged(f"The manifest {self.manifest_path} lists no tensor table.")
            path = self.private_dir / manifest.table.name
            data = read_file(path, limit=MAX_TABLE_BYTES)
            if data is not None:
                return Published(manifest, decode_table(data, manifest, where=str(path)))
            if manifest == last:
                raise CacheDamaged(f"The tensor table {path} is missing.")
            last = manifest  # the manifest was replaced between the two reads: try again
        return None

    def check_files(self, manifest: Manifest) -> None:
        """Checks that all published files exist and have the right size.

        Raises:
            CacheDamaged: A file is missing or has the wrong size; the message names it.
        """
        for file in manifest.files:
            _check_file(self.model_dir / file.path, file.size)
        if manifest.table is not None:
            _check_file(self.private_dir / manifest.table.name, manifest.table.size)

    def read_status(self) -> EntryStatus:
        """Returns the status. Never raises: an entry that can't be read is damaged."""
        try:
            manifest = self.read_manifest()
            if manifest is not None:
                self.check_files(manifest)
                return EntryStatus(EntryState.READY, manifest, "")
            left = bool(file_sizes(self.partial_dir)) or bool(self.model_files())
        except CacheDamaged as error:
            return EntryStatus(EntryState.DAMAGED, None, error.message)
        except OSError as error:
            return EntryStatus(
                EntryState.DAMAGED, None, f"{error.filename or self.path} can't be read: {error.strerror}."
            )
        return EntryStatus(EntryState.PARTIAL if left else EntryState.EMPTY, None, "")

    @property
    def state(self) -> EntryState:
        """The current state, read from the disk."""
        return self.read_status().state


def _check_file(path: Path, size: int) -> None:
    try:
        found = path.lstat()
    except OSError as error:
        raise CacheDamaged(f"{path} should have {size:,} bytes, but can't be accessed: {error.strerror}.") from error
    if not stat.S_ISREG(found.st_mode):
        raise CacheDamaged(f"{path} should be a file of {size:,} bytes, but is not a regular file.")
    if found.st_size != size:
        raise CacheDamaged(f"{path} has {found.st_size:,} bytes instead of {size:,}.")
