"""Which objects stay as they are in the cache, and what safetensors files of a model must not have in common. Pure."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from tonnage.contract import Layout
from tonnage.errors import FormatDamaged, FormatUnsupported, NameCollision
from tonnage.format.tensor_names import check_flat_names, short_repr
from tonnage.planning.file_names import source_stem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from tonnage.planning.blueprint import SourceObject


def find_unchanged(objects: Sequence[SourceObject], layout: Layout, segment_size: int) -> frozenset[int]:
    """Returns the indexes of the objects with tensors that the entry has byte for byte.

    These are all objects in the Tensorizer layout, and safetensors files in the Safetensors layout. Of those, a single
    file that is larger than the requested segments is divided into shards, if its readers know an index.

    Args:
        objects: All objects.
        layout: The layout of the entry.
        segment_size: Maximum size of a segment in bytes; 0 for none, so that no file is divided.

    Raises:
        FormatUnsupported: A safetensors file, in the Tensorizer layout.
    """
    found = {index for index, source in enumerate(objects) if source.tensors_index is not None}
    safetensors = {index for index in found if objects[index].is_safetensors}
    if layout is Layout.SAFETENSORS:
        return frozenset(index for index in safetensors if not _is_divided(objects, index, segment_size))
    for index in sorted(safetensors):
        raise FormatUnsupported(
            f"{objects[index].label} is a safetensors file; the Tensorizer layout has copies of .tensors files only."
        )
    return frozenset(found)


def check_duplicate_tensors(objects: Iterable[SourceObject]) -> None:
    """Checks that safetensors files of one folder and rank have no tensor in common: engines would read any of both.

    Raises:
        NameCollision: Two files have a tensor of the same name.
    """
    seen: dict[tuple[str, int | None], dict[str, str]] = {}
    for source in objects:
        if source.is_safetensors and source.tensors_index is not None:
            known = seen.setdefault((posixpath.dirname(source.path), source.rank), {})
            try:
                check_flat_names(source.tensors_index.tensors, label=source.label, seen=known)
            except NameCollision as error:
                raise NameCollision(
                    error.message,
                    remedy="Leave one of the files out with --exclude (spec.files.exclude), or upload the index that "
                    "lists the files of the model.",
                ) from error


def compare_with_index(
    weight_map: Mapping[str, str], tensors: Mapping[str, Collection[str]], *, label: str
) -> tuple[str, ...]:
    """Compares an index with the files beside it; returns notes for the report.

    Engines take the files' names from an index, and all tensors that are in these files. So a tensor in another file
    than in the index is read, and one that the index doesn't list, too; one that is nowhere would get random values.

    Args:
        weight_map: The name of each tensor's file, by the index.
        tensors: The names of the tensors of each of its files that is loaded, by the file's name.
        label: Name of the index in messages.

    Raises:
        FormatDamaged: The index lists a tensor that none of its files has.
    """
    if not tensors.keys() >= set(weight_map.values()):
        return ()  # others are in the entry
    there = frozenset().union(*(tensors[file] for file in set(weight_map.values())))
    absent = [name for name in weight_map if name not in there]
    if absent:
        raise FormatDamaged(
            f"{label} lists {_some(absent)} in {short_repr(weight_map[absent[0]])}, which doesn't have it, nor has "
            "another of the files that it lists.",
            remedy="Upload the model again with the index that belongs to its files; or leave the index out with "
            "--exclude (spec.files.exclude), to load all files.",
        )
    misplaced = [name for name, file in weight_map.items() if name not in tensors[file]]
    unlisted = sorted(there - weight_map.keys())
    notes = []
    if misplaced:
        notes.append(
            f"{label} lists {_some(misplaced)} in {short_repr(weight_map[misplaced[0]])}, but it is in "
            "another file: the index is not the one of these files. Engines that read whole files don't notice."
        )
    if unlisted:
        notes.append(
            f"{label} doesn't list {_some(unlisted)}, but a file that it lists has it: engines that read whole files "
            "take it."
        )
    return tuple(notes)


def _some(names: Sequence[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"the tensor {short_repr(names[0])}{more}"


def _is_divided(objects: Sequence[SourceObject], index: int, segment_size: int) -> bool:
    source = objects[index]
    if not segment_size or source.size <= segment_size or source.rank is not None or source.tensors_index is None:
        return False
    folder, name = posixpath.split(source.path)
    stem = source_stem(source.path, frozenset(each.path for each in objects))
    beside = [each for each in objects if each is not source and posixpath.dirname(each.path) == folder]
    return (
        not stem.is_single_file
        and stem.shard(0, 1) == name
        and not any(each.is_safetensors or each.path == posixpath.join(folder, stem.index_name) for each in beside)
        and all(tensor.dtype.safetensors_name is not None for tensor in source.tensors_index.tensors)
    )
