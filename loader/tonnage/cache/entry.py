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

from tonnage.cache import publishing
from tonnage.cache.files import files_below, make_folder
from tonnage.cache.locks import FileLock, LockKind, make_lock_file
from tonnage.cache.manifest import MANIFEST_LIMIT, TABLE_LIMIT, Manifest, TensorTable, decode_manifest, decode_table
from tonnage.cache.medium import in_memory
from tonnage.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tonnage.cache.publishing import Checkpoint

PRIVATE_FOLDER = ".tonnage"
MODEL_FOLDER = "model"


class State(enum.StrEnum):
    """What an entry has in it."""

    EMPTY = "empty"
    PARTIAL = "partial"
    """Nothing published, but something that a load can go on with."""
    READY = "ready"
    DAMAGED = "damaged"
    """Published, but not as its manifest says any more; or the manifest can't be read."""


class Finding(NamedTuple):
    """What a look at an entry found. ``problem`` is a sentence, empty unless it is damaged."""

    state: State
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
        self.model = path / MODEL_FOLDER
        self.private = path / PRIVATE_FOLDER
        self.use_path = self.private / "use.lock"
        self.load_path = self.private / "load.lock"
        self.journal_folder = self.private / "journal"
        self.journal_path = self.journal_folder / "parts"
        self.partial = self.private / "partial"
        self.partial_model = self.partial / MODEL_FOLDER
        self.manifest_path = self.private / "manifest.json"

    @classmethod
    def at(cls, path: Path) -> Entry | None:
        """Returns the entry that ``path`` is, or whose ``model`` folder it is; None for anything else.

        Where only the model's folder is mounted, as in a serving container, there is nothing to find.
        """
        place = path.absolute()
        folders = (place, place.parent) if place.name == MODEL_FOLDER else (place,)
        return next((cls(folder) for folder in folders if (folder / PRIVATE_FOLDER).is_dir()), None)

    def __repr__(self) -> str:
        return f"Entry({str(self.path)!r})"

    @property
    def in_memory(self) -> bool:
        """Whether its files are memory, so that nothing needs to be synced."""
        return in_memory(self.path)

    def exists(self) -> bool:
        """Says whether its folders are there (it may be empty all the same)."""
        return self.private.is_dir()

    def prepare(self) -> None:
        """Makes its folders and locks. Does nothing, and needs no permission to write, where they are there.

        Raises:
            CacheNotWritable: They can't be made.
            InsufficientSpace: There is no room for them.
        """
        for folder in (self.path, self.private, self.model):
            make_folder(folder)
        for lock in (self.use_path, self.load_path):
            make_lock_file(lock)

    # Locks

    def use_shared(
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
        lock = FileLock(self.use_path)
        lock.lock(LockKind.SHARED, deadline=deadline, canceled=canceled, on_wait=on_wait)
        lock.touch()
        return lock

    def try_exclusive(self) -> FileLock | None:
        """Returns the lock that a removal needs, or None while somebody uses the entry."""
        lock = FileLock(self.use_path)
        return lock if lock.try_lock(LockKind.EXCLUSIVE) else None

    def load_lock(
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
        lock = FileLock(self.load_path)
        lock.lock(LockKind.EXCLUSIVE, deadline=deadline, canceled=canceled, on_wait=on_wait)
        return lock

    def try_load_lock(self) -> FileLock | None:
        """Returns the loader's lock, or None while another process is loading."""
        lock = FileLock(self.load_path)
        return lock if lock.try_lock(LockKind.EXCLUSIVE) else None

    # Looking

    def read_manifest(self) -> Manifest | None:
        """Returns the manifest, or None when nothing is published.

        Raises:
            CacheDamaged: There is one, but it can't be read.
        """
        data = _read(self.manifest_path, MANIFEST_LIMIT)
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
            path = self.private / manifest.table.name
            data = _read(path, TABLE_LIMIT)
            if data is not None:
                return Published(manifest, decode_table(data, manifest, where=str(path)))
            if manifest == last:
                raise CacheDamaged(f"The table of tensors {path} is missing.")
            last = manifest  # it was replaced between the two reads: look again
        return None

    def check(self, manifest: Manifest) -> None:
        """Checks that all published files are there and have the size that they should have.

        Raises:
            CacheDamaged: One isn't; it is named.
        """
        for file in manifest.files:
            _check_file(self.model / file.path, file.size)
        if manifest.table is not None:
            _check_file(self.private / manifest.table.name, manifest.table.size)

    def look(self) -> Finding:
        """Looks what is in it. Never raises: what can't be looked at is damaged."""
        try:
            manifest = self.read_manifest()
            if manifest is not None:
                self.check(manifest)
                return Finding(State.READY, manifest, "")
            left = any(files_below(folder) for folder in (self.partial, self.journal_folder, self.model))
        except CacheDamaged as error:
            return Finding(State.DAMAGED, None, error.message)
        except OSError as error:
            return Finding(State.DAMAGED, None, f"{error.filename or self.path} can't be read: {error.strerror}.")
        return Finding(State.PARTIAL if left else State.EMPTY, None, "")

    @property
    def state(self) -> State:
        """What it has in it, as of now."""
        return self.look().state

    # Changing; all of it under ``load_lock``

    def begin_partial(self, *, keep: bool = False) -> Path:
        """Makes the folder that a load writes to and returns it.

        Args:
            keep: Leave the files and the journal of an earlier load; otherwise they are removed.

        Raises:
            CacheNotWritable: It can't be made, or what is there can't be removed.
            InsufficientSpace: There is no room for it.
        """
        return publishing.begin_partial(self, keep=keep)

    def publish(self, manifest: Manifest, table: TensorTable, *, checkpoint: Checkpoint | None = None) -> Manifest:
        """Makes what lies in the partial folder visible, at once and for good: see ``publishing.publish``."""
        return publishing.publish(self, manifest, table, checkpoint=checkpoint)

    def rewrite_manifest(self, manifest: Manifest) -> None:
        """Replaces the manifest, for a change that no file takes part in.

        Raises:
            CacheNotWritable: It can't be written.
            InsufficientSpace: There is no room for it.
        """
        publishing.rewrite_manifest(self, manifest)

    def recover(self) -> State:
        """Brings the entry back into order after a loader was killed: see ``publishing.recover``."""
        publishing.recover(self)
        return self.state

    def clear(self) -> int:
        """Removes everything but folders and locks, and returns the bytes that were freed.

        For this, also ``use.lock`` must be held exclusively, unless the entry is damaged: who has one of its files
        open or mapped keeps that file, but nobody can open it any more.

        Raises:
            CacheNotWritable: Something can't be removed. What remains is not visible as a model.
        """
        return publishing.clear(self)


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
