"""A cache entry's own account of its tensors: ``.tonnage/``, read under the lock that says "in use"."""

from __future__ import annotations

import contextlib
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

if TYPE_CHECKING:
    from tonnage.cache.manifest import TensorRecord


def find_entry(path: Path) -> tuple[Path, PurePosixPath] | None:
    """Returns the entry that a path belongs to, and where in its ``model/`` folder the path is; None outside of one.

    In a serving container that sees the ``model/`` folder alone there is no entry, just a directory with files.
    """
    resolved = path.resolve()
    for root in (resolved, *resolved.parents):
        if (root / PRIVATE_DIRECTORY).is_dir():
            inside = PurePosixPath(resolved.relative_to(root))
            if inside == PurePosixPath():
                return root, PurePosixPath()
            return (root, inside.relative_to(MODEL_DIRECTORY)) if inside.parts[0] == MODEL_DIRECTORY else None
    return None


def lock_entry(root: Path) -> FileLock:
    """Takes the entry's lock that keeps others from emptying it. Whoever gets it releases it.

    Raises:
        EntryBeingRemoved: Somebody is emptying the entry.
        CacheNotWritable: The lock file can't be opened.
        CacheDamaged: Something that isn't a lock file lies in its place.
    """
    lock = FileLock(Entry(root).use_lock_path)
    if not lock.try_acquire(LockMode.SHARED):
        raise EntryBeingRemoved(f"The entry {root} is being emptied by another process.")
    lock.touch()
    return lock


def read_entry(root: Path, subpath: PurePosixPath, *, rank: int | None) -> Catalog:
    """Reads what the entry's manifest and table of tensors say, and checks every file's size.

    Args:
        root: The entry's directory.
        subpath: What part of ``model/`` counts: a folder or a file there, or all of it.
        rank: Which rank's tensors, where the entry has ranks.

    Raises:
        EntryIncomplete: The entry was never finished, or was emptied.
        CacheDamaged: A file is missing or has another size than the manifest says, or the manifest is damaged.
        RankMissing: The entry has ranks, and this one isn't among them.
        NoTensorFiles: There are no weights in this part.
        NameCollision: Two files of this part hold a tensor of the same name.
        FormatUnsupported: The weights are encrypted.
    """
    entry = Entry(root)
    published = entry.read_published()
    if published is None:
        raise EntryIncomplete(
            f"The entry {root} has nothing published: its load is not finished, was cut off, or it was emptied."
        )
    manifest = published.manifest
    wanted = {
        number
        for number, file in enumerate(manifest.files)
        if file.kind in {"shard", "object"} and PurePosixPath(file.path).is_relative_to(subpath)
    }
    if not wanted:
        raise NoTensorFiles(f"The entry {root} holds no weights in {PurePosixPath(MODEL_DIRECTORY) / subpath}.")
    ranks = {own for number in wanted if (own := manifest.files[number].rank) is not None}
    chosen = choose_rank(rank, ranks, label=f"The entry {root}")
    wanted = {number for number in wanted if manifest.files[number].rank in {None, chosen}}
    for number in wanted:
        source = manifest.files[number].source
        if source is not None and manifest.sources[source].encrypted:
            raise FormatUnsupported(
                f"{manifest.files[number].path} in the entry {root} is encrypted; only tensorizer itself, with the "
                "key, can open it."
            )
    metadata = {
        "tonnage.revision": manifest.revision,
        "tonnage.digest": manifest.digest,
        "tonnage.layout": manifest.layout.value,
        "tonnage.verified": manifest.verified.value,
    }
    table_label = str(entry.private_dir / manifest.table.name) if manifest.table is not None else str(entry.private_dir)
    sources = {manifest.files[number].source for number in wanted}
    catalog_indexes = {number: at for at, number in enumerate(sorted(wanted))}
    records: dict[str, TensorInfo] = {}
    with contextlib.ExitStack() as opened:
        files = []
        for number in catalog_indexes:
            file = opened.enter_context(SourceFile(entry.model_dir / manifest.files[number].path))
            if file.size != manifest.files[number].size:
                raise CacheDamaged(
                    f"{file.path} has {file.size:,} bytes; the manifest says {manifest.files[number].size:,}."
                )
            files.append(file)
        found = (
            _tensor_info(tensor, catalog_indexes, table_label=table_label)
            for tensor in published.table.tensors
            if tensor.file in catalog_indexes or (tensor.file < 0 and tensor.source in sources)
        )
        add_records(records, found, files)
        opened.pop_all()
    return Catalog(tuple(files), records, metadata)


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
