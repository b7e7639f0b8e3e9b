"""Commits an entry: files are written privately, renamed into place, and committed by renaming the manifest.

A reader of ``model/`` sees either nothing or files that are complete and verified. If the process dies between two
steps, ``recover`` restores the entry: before the manifest's rename to the partial state, which the next load resumes;
after it to the published state. The caller of these functions holds the entry's ``load.lock``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tonnage.cache.filesystem import (
    DIRECTORY_MODE,
    PRIVATE_MODE,
    PUBLISHED_MODE,
    TEMPORARY_SUFFIX,
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
from tonnage.errors import CacheDamaged, InternalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage.cache.entry import Entry, EntryState
    from tonnage.cache.manifest import Manifest, TensorTable

    StepCallback = Callable[[str], None]
    """Called with the name of each completed step. Tests kill the process in it."""

_TRASH = "trash"


def begin_partial(entry: Entry, *, keep_existing: bool = False) -> Path:
    """Creates the directory that a load writes to and returns it.

    Args:
        entry: The entry to load.
        keep_existing: Keep the files and the journal of an earlier load; otherwise they are removed.

    Raises:
        CacheNotWritable: It can't be created, or existing files can't be removed.
        InsufficientSpace: The medium is full.
    """
    if not keep_existing:
        remove_tree(entry.journal_dir)
        remove_tree(entry.partial_dir)
    for folder in (entry.partial_dir, entry.partial_model_dir, entry.journal_dir):
        make_directory(folder)
    return entry.partial_model_dir


def publish(entry: Entry, manifest: Manifest, table: TensorTable, *, on_step: StepCallback | None = None) -> Manifest:
    """Publishes the files of the partial directory, all at once.

    Args:
        entry: The entry. ``recover`` has been called since the lock was acquired.
        manifest: The files of the entry after publishing: those in the partial directory, and published ones to keep.
            ``table`` and missing values of ``rest_crc32`` are filled in here.
        table: All tensors of these files.
        on_step: Called after each step.

    Returns:
        The manifest as written.

    Raises:
        CacheDamaged: A file is missing or has the wrong size, or a tensor is outside of its file.
        InsufficientSpace: No space for the manifest or the table; nothing was published.
        CacheNotWritable: A system call failed; nothing was published.
        InternalError: ``model/`` has unpublished files: ``recover`` was not called.
    """
    step = on_step or _nothing
    sync = not entry.in_memory
    current = entry.read_manifest()
    new_files = _collect_new_files(entry, manifest)
    check_table(table, manifest, where="The new tensor table")

    published_checksums = {} if current is None else {file.path: file.rest_crc32 for file in current.files}
    manifest = add_non_tensor_checksums(
        manifest, table, {path: entry.partial_model_dir / path for path in new_files}, published_checksums
    )
    _finish_files(entry, new_files)
    step("modes")
    if sync:
        for path in new_files:
            fsync_path(entry.partial_model_dir / path)
        for folder in reversed(list_directories(entry.partial_model_dir)):
            fsync_path(folder)
    step("synced")

    data = encode_table(table)
    record = table_record(data)
    if current is not None and current.table is not None and current.table.name == TABLE_NAME:
        record = msgspec.structs.replace(record, name=f"tensors-{record.sha256[:12]}.json")
    write_atomically(entry.private_dir / record.name, data, sync=sync)
    step("table")

    if current is None:
        _install_directory(entry, sync=sync)
    else:
        _install_files(entry, new_files, step, sync=sync)
    step("model")

    manifest = msgspec.structs.replace(manifest, table=record)
    temporary = write_temporary(entry.manifest_path, encode_manifest(manifest), sync=sync)
    step("manifest-written")
    replace_file(temporary, entry.manifest_path, sync=sync)
    step("manifest")

    remove_tree(entry.journal_dir)
    step("journal-removed")
    remove_tree(entry.partial_dir)
    step("partial-removed")
    _remove_stale_tables(entry, manifest)
    step("done")
    return manifest


def rewrite_manifest(entry: Entry, manifest: Manifest) -> None:
    """Replaces the manifest of a published entry whose files don't change.

    Raises:
        CacheNotWritable: It can't be written.
        InsufficientSpace: The medium is full.
    """
    write_atomically(entry.manifest_path, encode_manifest(manifest), sync=not entry.in_memory)


def recover(entry: Entry) -> EntryState:
    """Restores a consistent state after a loader was killed.

    - Temporary files and files that were being removed are deleted.
    - Without a readable manifest, a ``model/`` that was already renamed is moved back to the partial directory, where
      the journal applies to it. If that directory has files, ``model/`` is the rest of a removal and is deleted.
    - With a manifest, files in ``model/`` that it doesn't list were being added. They are moved back to the partial
      directory if the journal still exists (it is deleted before the partial directory), otherwise deleted. A journal
      and a partial directory without files remained after a commit and are deleted; with files they are an unfinished
      addition and are kept.
    - Partial files are made writable again.

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
    if manifest is None:
        _remove_manifest(entry)
        if file_sizes(entry.model_dir):
            if entry.partial_model_dir.exists():
                _rename_and_remove(entry, entry.model_dir)
            else:
                make_directory(entry.partial_dir)
                with translate_os_errors(f"{entry.model_dir} can't be moved back"):
                    entry.model_dir.rename(entry.partial_model_dir)
    else:
        _move_back_unlisted_files(entry, manifest)
        if not file_sizes(entry.partial_model_dir):
            remove_tree(entry.journal_dir)
            remove_tree(entry.partial_dir)
    _remove_stale_tables(entry, manifest)
    make_directory(entry.model_dir)
    for path in file_sizes(entry.partial_model_dir):
        _set_mode(entry.partial_model_dir / path, PRIVATE_MODE)
    return entry.state


def clear(entry: Entry) -> int:
    """Removes everything except directories and locks, and returns the number of bytes freed.

    The manifest is removed first, then the model by one rename, then the data. The caller also holds ``use.lock``
    exclusively, unless the entry is damaged: a process that has a file open or mapped keeps it, but the file can't be
    opened again.

    Raises:
        CacheNotWritable: Something can't be removed. What remains is not visible as a model.
    """
    freed = sum(file_sizes(entry.model_dir).values()) + sum(file_sizes(entry.partial_dir).values())
    _remove_manifest(entry)
    _remove_temporary_files(entry)
    if entry.model_dir.exists():
        _rename_and_remove(entry, entry.model_dir)
    remove_tree(entry.journal_dir)
    remove_tree(entry.partial_dir)
    _remove_stale_tables(entry, None)
    if entry.path.exists():
        make_directory(entry.model_dir)
    return freed


def _collect_new_files(entry: Entry, manifest: Manifest) -> list[str]:
    """Returns the manifest's files that are in the partial directory. Checks that the others are published."""
    sizes = file_sizes(entry.partial_model_dir)
    published = file_sizes(entry.model_dir)
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
    for path in sizes:  # unverified files of a load with other files
        remove_tree(entry.partial_model_dir / path)
    return new_files


def _finish_files(entry: Entry, new_files: list[str]) -> None:
    for path in new_files:
        _set_mode(entry.partial_model_dir / path, PUBLISHED_MODE)
    for folder in list_directories(entry.partial_model_dir):
        _set_mode(folder, DIRECTORY_MODE)


def _install_directory(entry: Entry, *, sync: bool) -> None:
    if file_sizes(entry.model_dir):
        raise InternalError(
            f"{entry.model_dir} contains files not listed in the manifest; call recover() before publish()."
        )
    if entry.model_dir.exists() and list_directories(entry.model_dir)[1:]:  # rename replaces empty directories only
        remove_tree(entry.model_dir)
    with translate_os_errors(f"{entry.model_dir} can't be renamed into place"):
        entry.partial_model_dir.rename(entry.model_dir)
    if sync:
        fsync_path(entry.path)


def _install_files(entry: Entry, new_files: list[str], step: StepCallback, *, sync: bool) -> None:
    make_directory(entry.model_dir)
    touched = {entry.model_dir}
    for path in new_files:
        target = entry.model_dir / path
        for folder in reversed(Path(path).parents[:-1]):
            make_directory(entry.model_dir / folder)
            touched.add(entry.model_dir / folder)
        with translate_os_errors(f"{target} can't be renamed into place"):
            (entry.partial_model_dir / path).rename(target)
        step(f"file {path}")
    if sync:
        for folder in sorted(touched, reverse=True):
            fsync_path(folder)


def _move_back_unlisted_files(entry: Entry, manifest: Manifest) -> None:
    known = {file.path for file in manifest.files}
    for path in file_sizes(entry.model_dir):
        if path in known:
            continue
        if not entry.journal_dir.exists():
            remove_tree(entry.model_dir / path)
            continue
        target = entry.partial_model_dir / path
        for folder in (entry.partial_dir, entry.partial_model_dir):
            make_directory(folder)
        for folder in reversed(Path(path).parents[:-1]):
            make_directory(entry.partial_model_dir / folder)
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
        path.chmod(mode)


def _nothing(_step: str) -> None:
    return
