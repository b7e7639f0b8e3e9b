"""Finds the tensor files at a path outside an entry, and reads their headers."""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tonnage.attach.errors import PathNotFound, RankMissing
from tonnage.attach.files.source_file import SourceFile
from tonnage.attach.files.tensor_info import NO_FILE, TensorInfo
from tonnage.errors import CacheDamaged, FormatUnsupported, NameCollision, NoTensorFiles
from tonnage.format.safetensors import read_header
from tonnage.format.tensor_names import short_repr
from tonnage.format.tensors_index import PREAMBLE_BYTES, TYPICAL_HEAD_BYTES, parse_index, parse_preamble
from tonnage.planning.blueprint import META_KEY, PATHS_KEY
from tonnage.planning.file_names import (
    INDEX_SUFFIX,
    LOAD_FORMAT_KEY,
    OWN_DIRECTORY,
    is_beside_the_model,
    without_refusals,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SAFETENSORS = ".safetensors"
TENSORS = ".tensors"
MAIN_INDEX = "model" + INDEX_SUFFIX

_RANK_NAME = re.compile(r"-rank-(\d+)(?:-part-(\d+))?\.(?:safetensors|tensors)\Z")
_MAX_INDEX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Catalog:
    """The tensors of one set of weights and the open files that hold them. The caller must close it.

    ``records`` are by flat name, in the order of the files and their headers.
    """

    files: tuple[SourceFile, ...]
    records: dict[str, TensorInfo]
    metadata: dict[str, str]

    def close(self) -> None:
        for file in self.files:
            file.close()


def read_path(path: Path, *, rank: int | None) -> Catalog:
    """Finds all tensor files at a path outside an entry and reads their headers.

    Args:
        path: A directory with safetensors or ``.tensors`` files, or one such file.
        rank: The rank to open, if the files' names have ranks.

    Raises:
        PathNotFound: The path does not exist.
        NoTensorFiles: The path exists, but has no weights.
        RankMissing: The files are sharded by rank, and a rank must be chosen or does not exist.
        NameCollision: Two files have a tensor of the same name.
        CacheDamaged: A file is truncated or malformed.
        FormatUnsupported: A file is encrypted or has an unknown version.
    """
    if path.is_dir():
        return read_files(_select_rank_files(_list_tensor_files(path), path, rank))
    if not path.exists():
        raise PathNotFound(f"{path} does not exist.")
    if path.suffix not in {SAFETENSORS, TENSORS}:
        raise NoTensorFiles(f"{path} is neither a directory nor a {SAFETENSORS} or {TENSORS} file.")
    return read_files([path])


def read_files(paths: Sequence[Path]) -> Catalog:
    """Reads the headers of these files, in this order, and compares each file's size with its header.

    Raises:
        NameCollision: Two files have a tensor of the same name.
        CacheDamaged: A file is truncated or malformed.
        FormatUnsupported: A file is encrypted or has an unknown version.
    """
    files: list[SourceFile] = []
    records: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    with contextlib.ExitStack() as opened:
        for path in paths:
            file = opened.enter_context(SourceFile(path))
            read = _read_safetensors if path.suffix == SAFETENSORS else _read_tensors
            found, file_metadata = read(file, len(files))
            file.park()
            files.append(file)
            add_records(records, found, files)
            metadata.update(file_metadata)
        opened.pop_all()
    return Catalog(tuple(files), records, metadata)


def add_records(records: dict[str, TensorInfo], found: Iterable[TensorInfo], files: Sequence[SourceFile]) -> None:
    """Adds ``found`` to ``records``.

    If two flat names are equal although their paths differ (``{"a": {"b": …}, "a.b": …}``), the nested tensor is named
    by its path, as JSON.

    Raises:
        NameCollision: ``records`` already has a tensor of the same name.
    """
    for record in found:
        other = records.get(record.name)
        if other is None:
            records[record.name] = record
        elif record.path == other.path:
            places = [str(files[each.file].path) if each.file != NO_FILE else "no file" for each in (other, record)]
            raise NameCollision(
                f"The tensor {short_repr(record.name)} is in {places[0]} and in {places[1]}: open only one of them."
            )
        else:
            renamed, keeps = (record, other) if len(record.path) > 1 else (other, record)
            records[keeps.name] = keeps
            renamed = renamed._replace(name=json.dumps(renamed.path, ensure_ascii=False))
            if records.setdefault(renamed.name, renamed) is not renamed:
                raise NameCollision(f"Two tensors have the name {short_repr(renamed.name)}.")


def _list_tensor_files(directory: Path) -> list[Path]:
    """Returns the files in the index or, without one, all safetensors files; without those, all ``.tensors`` files.

    To safetensors files, those that Tonnage keeps in a folder of its own are added.
    """
    names = _list_names(directory)
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    if MAIN_INDEX in indexes:
        indexes = [MAIN_INDEX]
    own = directory / OWN_DIRECTORY
    more = [f"{OWN_DIRECTORY}/{name}" for name in _list_names(own)] if own.is_dir() else []
    more = [name for name in more if name.endswith(SAFETENSORS)]
    if len(indexes) == 1:
        listed = _read_index(directory, indexes[0])
        if listed is not None:
            return [*listed, *(directory / name for name in more if not is_beside_the_model(name, indexes))]
    for suffix in (SAFETENSORS, TENSORS):
        found = [directory / name for name in without_refusals(names) if name.endswith(suffix)]
        if found:
            return [*found, *(directory / name for name in more)] if suffix == SAFETENSORS else found
    raise NoTensorFiles(f"{directory} has no {SAFETENSORS} and no {TENSORS} file.")


def _list_names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise CacheDamaged(f"{directory} can't be listed: {error.strerror}.") from error


def _read_index(directory: Path, name: str) -> list[Path] | None:
    """Returns the files that an index lists; None if it is one because of which engines refuse the folder."""
    index = directory / name
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise CacheDamaged(f"{index} has more than {_MAX_INDEX_BYTES:,} bytes; it is not an index.")
        content = json.loads(index.read_bytes())
        weight_map = content["weight_map"]
        if LOAD_FORMAT_KEY in content.get("metadata", {}):
            return None
        files = sorted(set(weight_map.values()))
    except OSError as error:
        raise CacheDamaged(f"{index} can't be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheDamaged(f"{index} is not an index of safetensors files: {error!r}.") from error
    for file in files:
        if not isinstance(file, str) or Path(file).is_absolute() or ".." in Path(file).parts:
            raise CacheDamaged(f"{index} lists the file {file!r}, which is not below the index's directory.")
        if not (directory / file).exists():
            raise CacheDamaged(f"{index} lists the file {file!r}, which does not exist: the directory is incomplete.")
    return [directory / file for file in files]


def _select_rank_files(paths: list[Path], directory: Path, rank: int | None) -> list[Path]:
    ranks: dict[int, list[tuple[int, Path]]] = {}
    for path in paths:
        match = _RANK_NAME.search(path.name)
        if match:
            ranks.setdefault(int(match[1]), []).append((int(match[2] or 0), path))
    if not ranks:
        choose_rank(rank, (), label=str(directory))
        return paths
    chosen = choose_rank(rank, ranks, label=str(directory))
    parts = sorted(ranks[chosen])
    missing = sorted(set(range(parts[-1][0] + 1)) - {part for part, _ in parts})
    if missing:
        raise CacheDamaged(f"{directory} is incomplete: part {missing[0]} of rank {chosen} is missing.")
    return [path for _, path in parts]


def find_ranks(path: Path) -> frozenset[int]:
    """Returns the ranks in the names of a directory's files; empty if the weights are not sharded by rank.

    Raises:
        NoTensorFiles: The directory has no weights.
        CacheDamaged: The directory can't be listed, or its index is damaged.
    """
    names = [file.name for file in _list_tensor_files(path)] if path.is_dir() else []
    return frozenset(int(match[1]) for name in names if (match := _RANK_NAME.search(name)))


def choose_rank(rank: int | None, available: Iterable[int], *, label: str) -> int:
    """Returns the rank to open.

    Args:
        rank: The requested rank.
        available: The ranks that exist. If there are none, the weights are not sharded by rank, and the result has no
            meaning.
        label: Name of the weights in error messages.

    Raises:
        RankMissing: The requested rank does not exist, or there are several and none was requested.
    """
    ranks = sorted(available)
    if not ranks:
        if rank is not None:
            raise RankMissing(f"{label} is not sharded by rank, but rank {rank} was requested: omit rank=.")
        return 0
    known = ", ".join(map(str, ranks[:64])) + ("…" if len(ranks) > 64 else "")
    if rank is None:
        if len(ranks) == 1:
            return ranks[0]
        raise RankMissing(f"{label} has the weights of {len(ranks)} ranks ({known}): choose one with rank=.")
    if rank not in ranks:
        raise RankMissing(f"{label} has no rank {rank}. Available: {known}.")
    return rank


def _read_safetensors(file: SourceFile, number: int) -> tuple[list[TensorInfo], dict[str, str]]:
    header = read_header(file.descriptor, label=str(file.path))
    metadata = dict(header.metadata)
    paths, metas = _parse_shard_metadata(file, metadata)
    records = [
        TensorInfo(
            tensor.name,
            paths.get(tensor.name, (tensor.name,)),
            tensor.dtype.torch_name,
            tensor.dtype.item_size,
            tensor.shape,
            number,
            tensor.start,
            tensor.end - tensor.start,
        )
        for tensor in header.tensors.values()
    ]
    records += [
        TensorInfo(name, paths.get(name, (name,)), dtype, size, shape, NO_FILE, 0, 0)
        for name, (dtype, size, shape) in metas.items()
    ]
    return records, metadata


def _parse_shard_metadata(
    file: SourceFile, metadata: dict[str, str]
) -> tuple[dict[str, tuple[str | int, ...]], dict[str, tuple[str, int, tuple[int, ...]]]]:
    """Parses the metadata for which safetensors has no fields: nested names and meta tensors. Removes it."""
    try:
        paths = {str(name): tuple(path) for name, path in json.loads(metadata.pop(PATHS_KEY, "{}")).items()}
        metas = {
            str(name): (str(dtype), int(size), tuple(int(dimension) for dimension in shape))
            for name, (dtype, size, shape) in json.loads(metadata.pop(META_KEY, "{}")).items()
        }
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CacheDamaged(f"{file.path}: the names in its metadata can't be parsed: {error!r}.") from error
    return paths, metas


def _read_tensors(file: SourceFile, number: int) -> tuple[list[TensorInfo], dict[str, str]]:
    name = str(file.path)
    try:
        head = os.pread(file.descriptor, TYPICAL_HEAD_BYTES, 0)
        preamble = parse_preamble(head, object_size=file.size, label=name)
        if preamble.encrypted:
            raise FormatUnsupported(f"{name} is encrypted; only tensorizer, with the key, can read it.")
        missing = PREAMBLE_BYTES + preamble.index_length - len(head)
        if missing > 0:
            head += os.pread(file.descriptor, missing, len(head))
    except OSError as error:
        raise CacheDamaged(f"{name} can't be read: {error.strerror}.") from error
    index = parse_index(preamble, memoryview(head)[PREAMBLE_BYTES:], object_size=file.size, label=name)
    return [
        TensorInfo(
            entry.name,
            (entry.name,) if is_flat(entry.path) else entry.path,
            entry.dtype.torch_name,
            entry.dtype.item_size,
            entry.shape,
            NO_FILE if entry.is_meta else number,
            entry.data_offset,
            entry.length,
        )
        for entry in index.tensors
    ], {}


def is_flat(path: tuple[str | int, ...]) -> bool:
    """Returns whether a path is one name. The flat name is then used, without the leading dot of a root module."""
    return len(path) == 1 and isinstance(path[0], str)
