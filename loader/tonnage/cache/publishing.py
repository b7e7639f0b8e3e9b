"""How files become visible: written in private, renamed as a whole, committed by the manifest's rename.

Whoever looks at ``model/`` sees nothing, or files that are complete and verified. A process that dies between any two
steps leaves something that ``recover`` brings back: before the manifest's rename, to the partial state that the next
load resumes; after it, to the published one. All functions here are for the holder of the entry's ``load.lock``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tonnage.cache.files import (
    FOLDER_MODE,
    PRIVATE_MODE,
    PUBLISHED_MODE,
    TEMPORARY,
    files_below,
    folders_below,
    make_folder,
    prepare_file,
    remove_tree,
    replace_with,
    sync_path,
    write_atomically,
    writing,
)
from tonnage.cache.manifest import TABLE_NAME, check_table, encode_manifest, encode_table, table_record
from tonnage.cache.rest import rest_checksums
from tonnage.errors import CacheDamaged, InternalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage.cache.entry import Entry
    from tonnage.cache.manifest import Manifest, TensorTable

    Checkpoint = Callable[[str], None]
    """Called after each step with its name; tests end the process there."""

_TRASH = "trash"


def begin_partial(entry: Entry, *, keep: bool) -> Path:
    """See ``Entry.begin_partial``."""
    if not keep:
        remove_tree(entry.journal_folder)
        remove_tree(entry.partial)
    for folder in (entry.partial, entry.partial_model, entry.journal_folder):
        make_folder(folder)
    return entry.partial_model


def publish(entry: Entry, manifest: Manifest, table: TensorTable, *, checkpoint: Checkpoint | None = None) -> Manifest:
    """Makes the files of the partial folder visible.

    Args:
        entry: What they belong to. ``recover`` was called since the lock was taken.
        manifest: What the entry holds afterwards: files of the partial folder, and those already published that stay.
            ``table`` and unknown ``rest_crc32`` are filled in here.
        table: All tensors of these files.
        checkpoint: Called after each step.

    Returns:
        The manifest as it was written.

    Raises:
        CacheDamaged: A file is missing, has another size, or a tensor lies outside of its file.
        InsufficientSpace: No room for the manifest or the table; nothing was published.
        CacheNotWritable: The system refused a step; nothing was published.
        InternalError: Something unpublished lies in ``model/``: ``recover`` was not called.
    """
    step = checkpoint or _nothing
    sync = not entry.in_memory
    current = entry.read_manifest()
    arrived = _match_files(entry, manifest)
    check_table(table, manifest, where="The new table of tensors")

    known = {} if current is None else {file.path: file.rest_crc32 for file in current.files}
    manifest = rest_checksums(manifest, table, {path: entry.partial_model / path for path in arrived}, known)
    _finish_files(entry, arrived)
    step("modes")
    if sync:
        for path in arrived:
            sync_path(entry.partial_model / path)
        for folder in reversed(folders_below(entry.partial_model)):
            sync_path(folder)
    step("synced")

    data = encode_table(table)
    record = table_record(data)
    if current is not None and current.table is not None and current.table.name == TABLE_NAME:
        record = msgspec.structs.replace(record, name=f"tensors-{record.sha256[:12]}.json")
    write_atomically(entry.private / record.name, data, sync=sync)
    step("table")

    if current is None:
        _place_folder(entry, sync=sync)
    else:
        _place_files(entry, arrived, step, sync=sync)
    step("model")

    manifest = msgspec.structs.replace(manifest, table=record)
    temporary = prepare_file(entry.manifest_path, encode_manifest(manifest), sync=sync)
    step("manifest-written")
    replace_with(temporary, entry.manifest_path, sync=sync)
    step("manifest")

    remove_tree(entry.journal_folder)
    step("journal-removed")
    remove_tree(entry.partial)
    step("partial-removed")
    _remove_other_tables(entry, manifest)
    step("done")
    return manifest


def rewrite_manifest(entry: Entry, manifest: Manifest) -> None:
    """See ``Entry.rewrite_manifest``."""
    write_atomically(entry.manifest_path, encode_manifest(manifest), sync=not entry.in_memory)


def recover(entry: Entry) -> None:
    """Undoes what a killed process left half done, whatever it was.

    - Unfinished files of our own (temporary ones, and what was being removed) go.
    - Without a readable manifest, a ``model/`` that was already renamed goes back to where the journal fits it, or, if
      files are there already, is what a removal left, and goes.
    - With a manifest: files in ``model/`` that it doesn't name were being added, and go back to the partial folder, if
      the journal is still there, which is dropped before the partial folder. A journal and a partial folder without
      files are left over after the commit, and go. With files they are an unfinished addition, and stay.
    - Partial files can be written again.

    Raises:
        CacheNotWritable: The system refused a step.
        CacheDamaged: There is something in the entry that neither of us put there (a link, a device).
    """
    if not entry.exists():
        return
    _remove_scraps(entry)
    manifest = _readable_manifest(entry)
    if manifest is None:
        _withdraw_manifest(entry)
        if files_below(entry.model):
            if entry.partial_model.exists():
                _trash(entry, entry.model)
            else:
                make_folder(entry.partial)
                with writing(f"{entry.model} can't be moved back"):
                    entry.model.rename(entry.partial_model)
    else:
        _take_back_additions(entry, manifest)
        if not files_below(entry.partial_model):
            remove_tree(entry.journal_folder)
            remove_tree(entry.partial)
    _remove_other_tables(entry, manifest)
    make_folder(entry.model)
    for path in files_below(entry.partial_model):
        _set_mode(entry.partial_model / path, PRIVATE_MODE)


def clear(entry: Entry) -> int:
    """See ``Entry.clear``. The manifest goes first, then the whole model by one rename, then the bytes."""
    freed = sum(files_below(entry.model).values()) + sum(files_below(entry.partial).values())
    _withdraw_manifest(entry)
    _remove_scraps(entry)
    if entry.model.exists():
        _trash(entry, entry.model)
    remove_tree(entry.journal_folder)
    remove_tree(entry.partial)
    _remove_other_tables(entry, None)
    if entry.path.exists():
        make_folder(entry.model)
    return freed


def _match_files(entry: Entry, manifest: Manifest) -> list[str]:
    """Returns which of the manifest's files are in the partial folder, after checking that the others are published."""
    sizes = files_below(entry.partial_model)
    published = files_below(entry.model)
    arrived = []
    for file in manifest.files:
        size = sizes.pop(file.path, None)
        if size is not None:
            arrived.append(file.path)
        else:
            size = published.get(file.path)
        if size is None:
            raise CacheDamaged(f"{entry.path} can't be published: {file.path!r} is missing.")
        if size != file.size:
            raise CacheDamaged(
                f"{entry.path} can't be published: {file.path!r} has {size:,} bytes instead of {file.size:,}."
            )
    for path in sizes:  # left by a load that had other files; they were never checked
        remove_tree(entry.partial_model / path)
    return arrived


def _finish_files(entry: Entry, arrived: list[str]) -> None:
    for path in arrived:
        _set_mode(entry.partial_model / path, PUBLISHED_MODE)
    for folder in folders_below(entry.partial_model):
        _set_mode(folder, FOLDER_MODE)


def _place_folder(entry: Entry, *, sync: bool) -> None:
    if files_below(entry.model):
        raise InternalError(f"{entry.model} has files that no manifest names; recover the entry before publishing.")
    if entry.model.exists() and folders_below(entry.model)[1:]:  # a rename replaces an empty folder only
        remove_tree(entry.model)
    with writing(f"{entry.model} can't be put in place"):
        entry.partial_model.rename(entry.model)
    if sync:
        sync_path(entry.path)


def _place_files(entry: Entry, arrived: list[str], step: Checkpoint, *, sync: bool) -> None:
    make_folder(entry.model)
    touched = {entry.model}
    for path in arrived:
        target = entry.model / path
        for folder in reversed(Path(path).parents[:-1]):
            make_folder(entry.model / folder)
            touched.add(entry.model / folder)
        with writing(f"{target} can't be put in place"):
            (entry.partial_model / path).rename(target)
        step(f"file {path}")
    if sync:
        for folder in sorted(touched, reverse=True):
            sync_path(folder)


def _take_back_additions(entry: Entry, manifest: Manifest) -> None:
    known = {file.path for file in manifest.files}
    for path in files_below(entry.model):
        if path in known:
            continue
        if not entry.journal_folder.exists():
            remove_tree(entry.model / path)
            continue
        target = entry.partial_model / path
        for folder in (entry.partial, entry.partial_model):
            make_folder(folder)
        for folder in reversed(Path(path).parents[:-1]):
            make_folder(entry.partial_model / folder)
        with writing(f"{entry.model / path} can't be moved back"):
            (entry.model / path).rename(target)


def _readable_manifest(entry: Entry) -> Manifest | None:
    try:
        return entry.read_manifest()
    except CacheDamaged:
        return None


def _withdraw_manifest(entry: Entry) -> None:
    with writing(f"{entry.manifest_path} can't be removed"):
        entry.manifest_path.unlink(missing_ok=True)
    if entry.exists() and not entry.in_memory:
        sync_path(entry.private)


def _remove_scraps(entry: Entry) -> None:
    remove_tree(entry.private / _TRASH)
    for scrap in entry.private.glob(f"*{TEMPORARY}"):
        remove_tree(scrap)


def _remove_other_tables(entry: Entry, manifest: Manifest | None) -> None:
    kept = manifest.table.name if manifest is not None and manifest.table is not None else ""
    for path in entry.private.glob("tensors*.json"):
        if path.name != kept:
            remove_tree(path)


def _trash(entry: Entry, folder: Path) -> None:
    """Takes a folder out of sight in one step before it is emptied, so that nobody sees half of it."""
    trash = entry.private / _TRASH
    with writing(f"{folder} can't be removed"):
        folder.rename(trash)
    remove_tree(trash)


def _set_mode(path: Path, mode: int) -> None:
    with writing(f"The permissions of {path} can't be set"):
        path.chmod(mode)


def _nothing(_step: str) -> None:
    return
