"""Commits an entry: files are written privately, renamed into place, and committed by renaming the manifest.

A reader of ``model/`` sees either nothing or files that are complete and verified. If the process dies between two
steps, ``recover`` restores the entry: before the manifest's rename to the partial state, which the next load resumes;
after it to the published state. The caller of these functions holds the entry's ``load.lock``.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tonnage.cache import flat
from tonnage.cache.filesystem import (
    DIRECTORY_MODE,
    PUBLISHED_MODE,
    TEMPORARY_SUFFIX,
    bytes_below,
    file_identity,
    file_sizes,
    fsync_path,
    list_directories,
    make_directory,
    remove_tree,
    replace_file,
    translate_os_errors,
    write_atomically,
    write_temporary,
)
from tonnage.cache.manifest import TABLE_NAME, check_table, encode_manifest, encode_table, table_record
from tonnage.cache.non_tensor_checksums import add_non_tensor_checksums
from tonnage.cache.partial import find_partials
from tonnage.cache.peer_ranges import remove_peer_files
from tonnage.cache.stream import reset_stream
from tonnage.errors import CacheDamaged, CacheInUse, CacheNotWritable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tonnage.cache.entry import Entry, EntryState
    from tonnage.cache.filesystem import FileIdentity
    from tonnage.cache.manifest import FileRecord, Manifest, TensorTable
    from tonnage.cache.partial import PartialDirectory

    StepCallback = Callable[[str], None]
    """Called with the name of each completed step. Tests kill the process in it."""

_TRASH = "trash"


def publish(
    entry: Entry,
    partial: PartialDirectory,
    manifest: Manifest,
    table: TensorTable,
    *,
    current: Manifest | None = None,
    made: Mapping[str, FileIdentity] | None = None,
    on_step: StepCallback | None = None,
) -> Manifest:
    """Publishes the files of a partial directory, all at once.

    Locks may lock nothing (see ``lock_scope``). Then another loader may publish at the same time: one of the two
    succeeds, and the other changes nothing of it.

    Args:
        entry: The entry. ``recover`` has been called since the lock was acquired.
        partial: The directory of this load.
        manifest: The files of the entry after publishing: those in the partial directory, and published ones to keep.
            ``table`` and missing values of ``rest_crc32`` are filled in here; given ones are compared with the disk.
        table: All tensors of these files.
        current: The manifest of the files that were published when the load began; None if there were none.
        made: Each new file that this load has created or verified, by path. None accepts any.
        on_step: Called after each step.

    Returns:
        The manifest as written.

    Raises:
        CacheDamaged: A file is missing, is another one than this load has written, has the wrong size or other bytes
            outside of tensors than were received; or a tensor is outside of its file.
        CacheInUse: Another loader has published here, or removed what this one did.
        InsufficientSpace: No space for the manifest or the table; nothing was published.
        CacheNotWritable: A system call failed; nothing was published.
    """
    step = on_step or _nothing
    sync = not entry.in_memory
    _check_current(entry, current)
    new_files = _collect_new_files(entry, partial, manifest, made)
    check_table(table, manifest, where="The new tensor table")

    published_checksums = {} if current is None else {file.path: file.rest_crc32 for file in current.files}
    manifest = add_non_tensor_checksums(
        manifest, table, {path: partial.model_dir / path for path in new_files}, published_checksums
    )
    if entry.is_flat:
        flat.check_places(entry, new_files)
        entry.record_names(entry.own_names().union(new_files))
        step("names")
    _finish_files(partial, new_files)
    step("modes")
    if sync:
        for path in new_files:
            fsync_path(partial.model_dir / path)
        for folder in reversed(list_directories(partial.model_dir)):
            fsync_path(folder)
    step("synced")

    data = encode_table(table)
    record = table_record(data)
    if current is not None and current.table is not None and current.table.name == TABLE_NAME:
        record = msgspec.structs.replace(record, name=f"tensors-{record.sha256[:12]}.json")
    _check_current(entry, current)
    with _noticing_removal(entry):
        write_atomically(entry.private_dir / record.name, data, sync=sync)
    step("table")

    if current is None and not entry.is_flat:
        identity = file_identity(partial.model_dir)
        _install_directory(entry, partial, sync=sync)
    else:
        identity = file_identity(entry.model_dir)
        _install_files(entry, partial, new_files, step, sync=sync)
    step("model")

    manifest = msgspec.structs.replace(manifest, table=record)
    temporary = write_temporary(entry.manifest_path, encode_manifest(manifest), sync=sync)
    step("manifest-written")
    with _noticing_removal(entry):
        replace_file(temporary, entry.manifest_path, sync=sync)
    step("manifest")
    if file_identity(entry.model_dir) != identity:
        _remove_manifest(entry)
        raise CacheInUse(f"Another process has removed {entry.model_dir} while this one published it.")

    remove_tree(partial.path)
    step("partial-removed")
    if current is not None and current.table is not None and current.table.name != record.name:
        remove_tree(entry.private_dir / current.table.name)
    step("done")
    return manifest


def rewrite_manifest(entry: Entry, manifest: Manifest) -> None:
    """Replaces the manifest of a published entry whose files don't change.

    Raises:
        CacheNotWritable: It can't be written.
        InsufficientSpace: The medium is full.
    """
    write_atomically(entry.manifest_path, encode_manifest(manifest), sync=not entry.in_memory)


def recover(entry: Entry, partials: Sequence[PartialDirectory] | None = None) -> EntryState:
    """Restores a consistent state after a loader was killed.

    - Temporary files and files that were being removed are deleted. Of several partial directories, the one with the
      longest journal is kept.
    - Without a readable manifest, a ``model/`` that was already renamed is moved back to the partial directory that
      has a journal and no ``model/``. If there is none, it is the rest of a removal and is deleted.
    - With a manifest, files in ``model/`` that it doesn't list were being added. They are moved back to the partial
      directory if there is one, otherwise deleted. A partial directory without files remained after a commit and is
      deleted; with files it is an unfinished addition and is kept.

    Args:
        entry: The entry, in which no other loader is at work.
        partials: What ``find_partials`` has returned when that was certain. Directories that were created since are
            those of other loads.

    Returns:
        The state of the entry afterwards.

    Raises:
        CacheNotWritable: A system call failed.
        CacheDamaged: The entry contains something that Tonnage did not create, such as a symbolic link or a device.
    """
    if not entry.exists():
        return entry.state
    _remove_temporary_files(entry)
    manifest = _readable_manifest(entry)
    partials = find_partials(entry) if partials is None else partials
    partial = partials[0] if partials else None
    for superfluous in partials[1:]:
        remove_tree(superfluous.path)
    if manifest is None:
        _remove_manifest(entry)
        if entry.is_flat:
            resumable = partial if partial is not None and partial.journal_path.exists() else None
            _move_back_unlisted_files(entry, (), resumable)
        elif file_sizes(entry.model_dir):
            if partial is not None and partial.journal_path.exists() and not partial.model_dir.exists():
                with translate_os_errors(f"{entry.model_dir} can't be moved back"):
                    entry.model_dir.rename(partial.model_dir)
            else:
                _rename_and_remove(entry, entry.model_dir)
    else:
        _move_back_unlisted_files(entry, manifest.files, partial)
        if partial is not None and not file_sizes(partial.model_dir):
            remove_tree(partial.path)
    _remove_stale_tables(entry, manifest)
    make_directory(entry.model_dir)
    return entry.state


def clear(entry: Entry) -> int:
    """Removes everything except directories and locks, and returns the number of bytes freed.

    The manifest is removed first, then the model by one rename, then the data. The caller also holds ``use.lock``
    exclusively, unless the entry is damaged: a process that has a file open or mapped keeps it, but the file can't be
    opened again.

    Raises:
        CacheNotWritable: Something can't be removed. What remains is not visible as a model.
    """
    folders = [partial.model_dir for partial in find_partials(entry)]
    freed = sum(map(bytes_below, folders))
    freed += sum(entry.model_files().values()) if entry.is_flat else bytes_below(entry.model_dir)
    _remove_manifest(entry)
    _remove_temporary_files(entry)
    remove_peer_files(entry)
    reset_stream(entry)
    if entry.is_flat:
        flat.remove_files(entry)
    elif entry.model_dir.exists():
        _rename_and_remove(entry, entry.model_dir)
    remove_tree(entry.partial_dir)
    _remove_stale_tables(entry, None)
    if entry.path.exists():
        make_directory(entry.model_dir)
    return freed


@contextmanager
def _noticing_removal(entry: Entry) -> Iterator[None]:
    """Raises ``CacheInUse`` if another process removes a temporary file before it is renamed."""
    try:
        yield
    except CacheNotWritable as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise CacheInUse(f"Another process has removed files of {entry.path} that this one was writing.") from error
        raise


def _check_current(entry: Entry, current: Manifest | None) -> None:
    if entry.read_manifest() != current:
        raise CacheInUse(f"Another loader has published in {entry.path} since this one began.")


def _collect_new_files(
    entry: Entry, partial: PartialDirectory, manifest: Manifest, made: Mapping[str, FileIdentity] | None
) -> list[str]:
    """Returns the manifest's files that are in the partial directory. Checks that the others are published."""
    sizes = file_sizes(partial.model_dir)
    published = entry.model_files()
    new_files = []
    for file in manifest.files:
        size = sizes.pop(file.path, None)
        if size is not None:
            new_files.append(file.path)
        else:
            size = published.get(file.path)
        if size is None:
            raise CacheDamaged(f"{entry.path} can't be published: {file.path!r} is missing.")
        if size != file.size:
            raise CacheDamaged(
                f"{entry.path} can't be published: {file.path!r} has {size:,} bytes instead of {file.size:,}."
            )
    for path in new_files:
        if made is not None and file_identity(partial.model_dir / path) != made.get(path):
            raise CacheDamaged(f"{entry.path} can't be published: {path!r} is not the file that this load has written.")
    for path in sizes:  # unverified files of a load with other files
        remove_tree(partial.model_dir / path)
    return new_files


def _finish_files(partial: PartialDirectory, new_files: list[str]) -> None:
    for path in new_files:
        _set_mode(partial.model_dir / path, PUBLISHED_MODE)
    for folder in list_directories(partial.model_dir):
        _set_mode(folder, DIRECTORY_MODE)


def _install_directory(entry: Entry, partial: PartialDirectory, *, sync: bool) -> None:
    if file_sizes(entry.model_dir):
        raise CacheInUse(f"Another loader has published in {entry.path} since this one began, or is publishing there.")
    with translate_os_errors(f"{entry.model_dir} can't be renamed into place"):
        if entry.model_dir.exists():
            for folder in reversed(list_directories(entry.model_dir)[1:]):
                folder.rmdir()  # rename replaces empty directories only; rmdir never removes a file
        partial.model_dir.rename(entry.model_dir)
    if sync:
        fsync_path(entry.path)


def _install_files(
    entry: Entry, partial: PartialDirectory, new_files: list[str], step: StepCallback, *, sync: bool
) -> None:
    make_directory(entry.model_dir)
    touched = {entry.model_dir}
    for path in new_files:
        target = entry.model_dir / path
        for folder in reversed(Path(path).parents[:-1]):
            make_directory(entry.model_dir / folder)
            touched.add(entry.model_dir / folder)
        with translate_os_errors(f"{target} can't be renamed into place"):
            (partial.model_dir / path).rename(target)
        step(f"file {path}")
    if sync:
        for folder in sorted(touched, reverse=True):
            fsync_path(folder)


def _move_back_unlisted_files(entry: Entry, listed: Sequence[FileRecord], partial: PartialDirectory | None) -> None:
    known = {file.path for file in listed}
    for path in entry.model_files():
        if path in known:
            continue
        if partial is None or (partial.model_dir / path).exists():
            remove_tree(entry.model_dir / path)
            continue
        target = partial.model_dir / path
        make_directory(partial.model_dir)
        for folder in reversed(Path(path).parents[:-1]):
            make_directory(partial.model_dir / folder)
        with translate_os_errors(f"{entry.model_dir / path} can't be moved back"):
            (entry.model_dir / path).rename(target)


def _readable_manifest(entry: Entry) -> Manifest | None:
    try:
        return entry.read_manifest()
    except CacheDamaged:
        return None


def _remove_manifest(entry: Entry) -> None:
    with translate_os_errors(f"{entry.manifest_path} can't be removed"):
        entry.manifest_path.unlink(missing_ok=True)
    if entry.exists() and not entry.in_memory:
        fsync_path(entry.private_dir)


def _remove_temporary_files(entry: Entry) -> None:
    remove_tree(entry.private_dir / _TRASH)
    for temporary in entry.private_dir.glob(f"*{TEMPORARY_SUFFIX}"):
        remove_tree(temporary)


def _remove_stale_tables(entry: Entry, manifest: Manifest | None) -> None:
    kept = manifest.table.name if manifest is not None and manifest.table is not None else ""
    for path in entry.private_dir.glob("tensors*.json"):
        if path.name != kept:
            remove_tree(path)


def _rename_and_remove(entry: Entry, folder: Path) -> None:
    """Hides a directory by one rename before deleting it, so that a partial one is never visible."""
    trash = entry.private_dir / _TRASH
    with translate_os_errors(f"{folder} can't be removed"):
        folder.rename(trash)
    remove_tree(trash)


def _set_mode(path: Path, mode: int) -> None:
    with translate_os_errors(f"The permissions of {path} can't be set"):
        try:
            path.chmod(mode)
        except PermissionError:  # some network file systems refuse it to all users; what counts is that all can read
            if path.stat().st_mode & mode & 0o555 != mode & 0o555:
                raise


def _nothing(_step: str) -> None:
    return
