"""Which objects stay as they are in the cache, and what safetensors files of a model must not have in common. Pure."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from tonnage.contract import Layout
from tonnage.errors import FormatUnsupported, NameCollision
from tonnage.format.tensor_names import check_flat_names
from tonnage.planning.file_names import source_stem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
