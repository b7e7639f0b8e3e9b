"""Reads a cache entry's manifest and table of tensors (``.tonnage/``) under a shared use lock."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tonnage.attach.errors import EntryBeingRemoved, EntryIncomplete
from tonnage.attach.files.catalog import Catalog, add_records, choose_rank, is_flat
from tonnage.attach.files.source_file import SourceFile
from tonnage.attach.files.tensor_info import NO_FILE, TensorInfo
from tonnage.cache.entry import MODEL_DIRECTORY, PRIVATE_DIRECTORY, Entry
from tonnage.cache.locks import FileLock, LockMode
from tonnage.errors import CacheDamaged, FormatUnsupported, NoTensorFiles
from tonnage.format.dtypes import parse_dtype
from tonnage.format.tensor_names import short_repr
from tonnage.planning.file_names import is_beside_the_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage.cache.entry import Published
    from tonnage.cache.manifest import FileRecord, Manifest, TensorRecord, TensorTable

_ALL = PurePosixPath()


def find_entry(path: Path) -> tuple[Path, PurePosixPath] | None:
    """Returns the entry that contains a path, and the path relative to its ``model/`` folder; None outside an entry.

    In a serving container, only the ``model/`` folder is mounted: it is a directory of files, not an entry.
    """
    resolved = path.resolve()
    if (resolved / PRIVATE_DIRECTORY).is_dir():
        return resolved, PurePosixPath()
    for model in (resolved, *resolved.parents):
        if model.name == MODEL_DIRECTORY and _has_private_directory(model):
            return model.parent, PurePosixPath(resolved.relative_to(model))
    return None


def _has_private_directory(model: Path) -> bool:
    """Returns whether a folder is the ``model/`` of an entry, and both belong to the same user or to a trusted one."""
    try:
        owner = (model.parent / PRIVATE_DIRECTORY).lstat()
        return stat.S_ISDIR(owner.st_mode) and owner.st_uid in {0, os.geteuid(), model.stat().st_uid}
    except OSError:
        return False


def lock_entry(root: Path) -> FileLock:
    """Acquires the entry's shared use lock, which prevents eviction. The caller must release it.

    Raises:
        EntryBeingRemoved: Another process is evicting the entry.
        CacheNotWritable: The lock file can't be opened.
        CacheDamaged: The lock's path is not a regular file.
    """
    lock = FileLock(Entry(root).use_lock_path)
    if not lock.try_acquire(LockMode.SHARED):
        raise EntryBeingRemoved(f"The entry {root} is being evicted by another process.")
    lock.touch()
    return lock


def read_entry(root: Path, subpath: PurePosixPath, *, rank: int | None) -> Catalog:
    """Reads the entry's manifest and table of tensors, and checks every file's size.

    Args:
        root: The entry's directory.
        subpath: A folder or file in ``model/`` to open; empty for all of it.
        rank: The rank to open, if the entry is sharded by rank.

    Raises:
        EntryIncomplete: The entry's load is not finished, or the entry was evicted.
        CacheDamaged: A file is missing or its size differs from the manifest, or the manifest is damaged.
        RankMissing: The entry is sharded by rank, and a rank must be chosen or does not exist.
        NoTensorFiles: ``subpath`` has no weights.
        NameCollision: Two files have a tensor of the same name.
        FormatUnsupported: The weights are encrypted.
    """
    entry = Entry.at(root)
    published = _read_published(entry)
    table = published.manifest.table
    return build_catalog(
        published.manifest,
        published.table,
        subpath,
        rank=rank,
        label=f"The entry {root}",
        table_label=str(entry.private_dir / table.name) if table is not None else str(entry.private_dir),
        open_file=lambda file: _open_file(entry, file),
    )


def _open_file(entry: Entry, file: FileRecord) -> SourceFile:
    opened = SourceFile(entry.model_dir / file.path)
    if opened.size != file.size:
        opened.close()
        raise CacheDamaged(f"{opened.path} has {opened.size:,} bytes, but {file.size:,} in the manifest.")
    opened.park()
    return opened


def build_catalog(
    manifest: Manifest,
    table: TensorTable,
    subpath: PurePosixPath = _ALL,
    *,
    rank: int | None,
    label: str,
    table_label: str,
    open_file: Callable[[FileRecord], SourceFile],
) -> Catalog:
    """Selects files and tensors of a manifest and its table.

    Args:
        manifest: The files.
        table: The tensors.
        subpath: A folder or file to open; empty for all.
        rank: The rank to open, if the files are sharded by rank.
        label: Names the weights in messages, at the begin of a sentence.
        table_label: Names the table in messages.
        open_file: Returns a selected file.

    Raises:
        RankMissing: The files are sharded by rank, and a rank must be chosen or does not exist.
        NoTensorFiles: ``subpath`` has no weights.
        NameCollision: Two files have a tensor of the same name.
        FormatUnsupported: The weights are encrypted.
        CacheDamaged: The table is inconsistent, or a file can't be opened.
    """
    wanted = {
        number
        for number, file in enumerate(manifest.files)
        if file.kind in {"shard", "object"} and PurePosixPath(file.path).is_relative_to(subpath)
    }
    indexes = {file.path for file in manifest.files if file.kind == "index"}
    if any(not is_beside_the_model(manifest.files[number].path, indexes) for number in wanted):
        wanted = {number for number in wanted if not is_beside_the_model(manifest.files[number].path, indexes)}
    if not wanted:
        raise NoTensorFiles(f"{label} has no weights in {PurePosixPath(MODEL_DIRECTORY) / subpath}.")
    ranks = {own for number in wanted if (own := manifest.files[number].rank) is not None}
    chosen = choose_rank(rank, ranks, label=label)
    wanted = {number for number in wanted if manifest.files[number].rank in {None, chosen}}
    for number in wanted:
        source = manifest.files[number].source
        if source is not None and manifest.sources[source].encrypted:
            raise FormatUnsupported(
                f"{label}: {manifest.files[number].path} is encrypted; only tensorizer, with the key, can read it."
            )
    metadata = {
        "tonnage.revision": manifest.revision,
        "tonnage.digest": manifest.digest,
        "tonnage.layout": manifest.layout.value,
        "tonnage.verified": manifest.verified.value,
    }
    sources = {manifest.files[number].source for number in wanted}
    catalog_indexes = {number: at for at, number in enumerate(sorted(wanted))}
    records: dict[str, TensorInfo] = {}
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context(open_file(manifest.files[number])) for number in catalog_indexes]
        found = (
            _tensor_info(tensor, catalog_indexes, table_label=table_label)
            for tensor in table.tensors
            if tensor.file in catalog_indexes or (tensor.file < 0 and tensor.source in sources)
        )
        add_records(records, found, files)
        opened.pop_all()
    return Catalog(tuple(files), records, metadata)


def entry_ranks(root: Path) -> frozenset[int]:
    """Returns the ranks that an entry's weights are sharded by; empty if they are not.

    Raises:
        EntryIncomplete: The entry's load is not finished, or the entry was evicted.
        CacheDamaged: The manifest is damaged.
    """
    files = _read_published(Entry(root)).manifest.files
    return frozenset(file.rank for file in files if file.rank is not None)


def _read_published(entry: Entry) -> Published:
    published = entry.read_published()
    if published is None:
        raise EntryIncomplete(
            f"The entry {entry.path} is not published: its load is not finished or was interrupted, or the entry was "
            "evicted."
        )
    return published


def _tensor_info(tensor: TensorRecord, catalog_indexes: dict[int, int], *, table_label: str) -> TensorInfo:
    dtype = parse_dtype(tensor.dtype.encode(), where=f"{table_label}, tensor {short_repr(tensor.name)}")
    empty = 0 in tensor.shape
    count = 1
    for dimension in tensor.shape:
        count *= dimension
    if tensor.length != count * dtype.item_size and tensor.length != 0:
        raise CacheDamaged(
            f"{table_label}: the tensor {short_repr(tensor.name)} has {tensor.length:,} bytes for the shape "
            f"{tensor.shape}."
        )
    meta = tensor.length == 0 and not empty
    return TensorInfo(
        tensor.name,
        (tensor.name,) if tensor.path is None or is_flat(tensor.path) else tensor.path,
        dtype.torch_name,
        dtype.item_size,
        tensor.shape,
        NO_FILE if meta or tensor.file < 0 else catalog_indexes[tensor.file],
        tensor.offset,
        tensor.length,
    )
