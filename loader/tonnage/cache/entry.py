"""One entry of the cache: where its files lie, its locks, and what state it is in.

::

    <entry>/model/                the published files, read-only
    <entry>/.tonnage/use.lock     shared: in use; exclusive: being removed
    <entry>/.tonnage/load.lock    exclusive: being loaded, published, recovered
    <entry>/.tonnage/journal/     what an unfinished load has on disk
    <entry>/.tonnage/partial/     its files
    <entry>/.tonnage/manifest.json, tensors.json

Order of the locks: ``use.lock`` (shared) first, then ``load.lock``; both are files that stay for ever.
"""

from __future__ import annotations

import enum
import stat
from typing import TYPE_CHECKING, NamedTuple

from tonnage.cache.filesystem import file_sizes, make_directory
from tonnage.cache.locks import FileLock, LockMode, make_lock_file
from tonnage.cache.manifest import (
    MAX_MANIFEST_BYTES,
    MAX_TABLE_BYTES,
    Manifest,
    TensorTable,
    decode_manifest,
    decode_table,
)
from tonnage.cache.medium import in_memory
from tonnage.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PRIVATE_DIRECTORY = ".tonnage"
MODEL_DIRECTORY = "model"


class EntryState(enum.StrEnum):
    """What an entry has in it."""

    EMPTY = "empty"
    PARTIAL = "partial"
    """Nothing published, but something that a load can go on with."""
    READY = "ready"
    DAMAGED = "damaged"
    """Published, but not as its manifest says any more; or the manifest can't be read."""


class EntryStatus(NamedTuple):
    """What a look at an entry found. ``problem`` is a sentence, empty unless it is damaged."""

    state: EntryState
    manifest: Manifest | None
    problem: str


class Published(NamedTuple):
    """A manifest with the table of tensors that belongs to it."""

    manifest: Manifest
    table: TensorTable


class Entry:
    """One entry. Making the object touches nothing on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.model_dir = path / MODEL_DIRECTORY
        self.private_dir = path / PRIVATE_DIRECTORY
        self.use_lock_path = self.private_dir / "use.lock"
        self.load_lock_path = self.private_dir / "load.lock"
        self.journal_dir = self.private_dir / "journal"
        self.journal_path = self.journal_dir / "parts"
        self.partial_dir = self.private_dir / "partial"
        self.partial_model_dir = self.partial_dir / MODEL_DIRECTORY
        self.manifest_path = self.private_dir / "manifest.json"

    @classmethod
    def from_path(cls, path: Path) -> Entry | None:
        """Returns the entry that ``path`` is, or whose ``model`` folder it is; None for anything else.

        Where only the model's folder is mounted, as in a serving container, there is nothing to find.
        """
        place = path.absolute()
        folders = (place, place.parent) if place.name == MODEL_DIRECTORY else (place,)
        return next((cls(folder) for folder in folders if (folder / PRIVATE_DIRECTORY).is_dir()), None)

    def __repr__(self) -> str:
        return f"Entry({str(self.path)!r})"

    @property
    def in_memory(self) -> bool:
        """Whether its files are memory, so that nothing needs to be synced."""
        return in_memory(self.path)

    def exists(self) -> bool:
        """Says whether its folders are there (it may be empty all the same)."""
        return self.private_dir.is_dir()

    def create(self) -> None:
        """Makes its folders and locks. Does nothing, and needs no permission to write, where they are there.

        Raises:
            CacheNotWritable: They can't be made.
            InsufficientSpace: There is no room for them.
        """
        for folder in (self.path, self.private_dir, self.model_dir):
            make_directory(folder)
        for lock in (self.use_lock_path, self.load_lock_path):
            make_lock_file(lock)

    # Locks

    def acquire_use_lock(
        self,
        *,
        deadline: float | None = None,
        canceled: Callable[[], bool] | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> FileLock:
        """Says "in use" until the returned lock is released, after waiting for a removal that is going on.

        Raises:
            Timeout: See ``FileLock.lock``, for the other arguments and errors too.
            Interrupted: ``canceled`` said so.
            CacheNotWritable: The entry isn't prepared and can't be.
        """
        lock = FileLock(self.use_lock_path)
        lock.acquire(LockMode.SHARED, deadline=deadline, canceled=canceled, on_wait=on_wait)
        lock.touch()
        return lock

    def try_acquire_exclusive_use_lock(self) -> FileLock | None:
        """Returns the lock that a removal needs, or None while somebody uses the entry."""
        lock = FileLock(self.use_lock_path)
        return lock if lock.try_acquire(LockMode.EXCLUSIVE) else None

    def acquire_load_lock(
        self,
        *,
        deadline: float | None = None,
        canceled: Callable[[], bool] | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> FileLock:
        """Becomes the one loader of the entry, after waiting for the one before. Then look again: it may be a hit.

        Raises:
            Timeout: See ``FileLock.lock``, for the other arguments and errors too.
            Interrupted: ``canceled`` said so.
            CacheNotWritable: The entry isn't prepared, or not by this user.
        """
        lock = FileLock(self.load_lock_path)
        lock.acquire(LockMode.EXCLUSIVE, deadline=deadline, canceled=canceled, on_wait=on_wait)
        return lock

    def try_acquire_load_lock(self) -> FileLock | None:
        """Returns the loader's lock, or None while another process is loading."""
        lock = FileLock(self.load_lock_path)
        return lock if lock.try_acquire(LockMode.EXCLUSIVE) else None

    # Looking

    def read_manifest(self) -> Manifest | None:
        """Returns the manifest, or None when nothing is published.

        Raises:
            CacheDamaged: There is one, but it can't be read.
        """
        data = _read(self.manifest_path, MAX_MANIFEST_BYTES)
        return None if data is None else decode_manifest(data, where=str(self.manifest_path))

    def read_published(self) -> Published | None:
        """Returns manifest and tensors of what is published, which belong together, or None when nothing is.

        Raises:
            CacheDamaged: One of them can't be read, or they don't belong together.
        """
        last: Manifest | None = None
        while (manifest := self.read_manifest()) is not None:
            if manifest.table is None:
                raise CacheDamaged(f"The manifest {self.manifest_path} names no table of tensors.")
            path = self.private_dir / manifest.table.name
            data = _read(path, MAX_TABLE_BYTES)
            if data is not None:
                return Published(manifest, decode_table(data, manifest, where=str(path)))
            if manifest == last:
                raise CacheDamaged(f"The table of tensors {path} is missing.")
            last = manifest  # it was replaced between the two reads: look again
        return None

    def check_files(self, manifest: Manifest) -> None:
        """Checks that all published files are there and have the size that they should have.

        Raises:
            CacheDamaged: One isn't; it is named.
        """
        for file in manifest.files:
            _check_file(self.model_dir / file.path, file.size)
        if manifest.table is not None:
            _check_file(self.private_dir / manifest.table.name, manifest.table.size)

    def read_status(self) -> EntryStatus:
        """Looks what is in it. Never raises: what can't be looked at is damaged."""
        try:
            manifest = self.read_manifest()
            if manifest is not None:
                self.check_files(manifest)
                return EntryStatus(EntryState.READY, manifest, "")
            left = any(file_sizes(folder) for folder in (self.partial_dir, self.journal_dir, self.model_dir))
        except CacheDamaged as error:
            return EntryStatus(EntryState.DAMAGED, None, error.message)
        except OSError as error:
            return EntryStatus(
                EntryState.DAMAGED, None, f"{error.filename or self.path} can't be read: {error.strerror}."
            )
        return EntryStatus(EntryState.PARTIAL if left else EntryState.EMPTY, None, "")

    @property
    def state(self) -> EntryState:
        """What it has in it, as of now."""
        return self.read_status().state


def _check_file(path: Path, size: int) -> None:
    try:
        found = path.lstat()
    except OSError as error:
        raise CacheDamaged(f"{path} should have {size:,} bytes, but: {error.strerror}.") from error
    if not stat.S_ISREG(found.st_mode):
        raise CacheDamaged(f"{path} should be a file of {size:,} bytes, but is no regular file.")
    if found.st_size != size:
        raise CacheDamaged(f"{path} has {found.st_size:,} bytes instead of {size:,}.")


def _read(path: Path, limit: int) -> bytes | None:
    """Returns a file's bytes, None when it isn't there."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise CacheDamaged(f"{path} has {size:,} bytes, which no file of its kind has.")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheDamaged(f"{path} can't be read: {error.strerror}.") from error
