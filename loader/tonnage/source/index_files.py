"""Reads the indexes of safetensors files at the source, and leaves out the files that they don't list."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from tonnage.contract import parse_checksum
from tonnage.contract.plan import DECODE_ERRORS
from tonnage.errors import (
    ChecksumMismatch,
    FormatDamaged,
    ObjectNotFound,
    SourceChanged,
    TonnageError,
    escape_unprintable,
)
from tonnage.planning.file_names import is_single_file
from tonnage.source.checkpoint_files import find_indexes, missing_shards
from tonnage.source.responses import strong_etag
from tonnage.source.small_objects import differing_checksum, read_objects

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from tonnage.contract import ObjectPin
    from tonnage.source.pinned import RequestContext
    from tonnage.source.request_failure import RequestFailure
    from tonnage.source.request_target import RequestTarget
    from tonnage.source.selection import SelectedObject, Selection

_Pinned = TypeVar("_Pinned")

MAX_INDEX_BYTES = 64 << 20
"""Largest accepted index in bytes. The index of a model of 100,000 tensors has about 10 MB."""
MAX_INDEX_TENSORS = 1 << 20
_REMEDY = "Upload the model again with all of its files; or leave the index out with --exclude, to load all files."


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class IndexFile(NamedTuple):
    """The contents of an index, and the ETag of the answer that they are from; empty if that means nothing."""

    content: bytes
    etag: str = ""


class _IndexMismatch(Exception):  # control flow within this module
    """An index is not what was pinned after it had been read."""

    def __init__(self, error: TonnageError) -> None:
        super().__init__(error.message)
        self.error = error


def read_index_files(
    context: RequestContext, targets: Mapping[str, RequestTarget], *, s3: bool = False
) -> tuple[dict[str, IndexFile], RequestFailure | None]:
    """Requests indexes by path; returns them, and the first failure if there is one."""
    responses = read_objects(context, list(targets.values()), limit=MAX_INDEX_BYTES, s3=s3)
    failure = next((response.failure for response in responses if response.failure is not None), None)
    found = {
        path: IndexFile(response.body, strong_etag(response.headers.get("etag", "")))
        for path, response in zip(targets, responses, strict=True)
    }
    return found, failure


def select_listed(
    select: Callable[[Collection[str]], Selection],
    read: Callable[[Sequence[SelectedObject]], Mapping[str, IndexFile]],
    *,
    where: str,
) -> tuple[Selection, Mapping[str, IndexFile]]:
    """Returns the selected objects without the weights that their indexes don't list, and the indexes by path.

    Args:
        select: Returns the selection; see ``apply_indexes``.
        read: Reads the selection's indexes, by path. Called again if they list what is not there, as they may have been
            damaged on the way or replaced.
        where: The source's name in messages.

    Raises:
        TonnageError: Likewise the second time; see ``apply_indexes``.
    """
    selection = select(())
    if not selection.indexes:
        return selection, {}

    def apply(found: Mapping[str, IndexFile]) -> Selection:
        contents = {path: each.content for path, each in found.items()}
        return apply_indexes(selection, contents, where=where, select=select)

    found = read(selection.indexes)
    try:
        return apply(found), found
    except (FormatDamaged, ObjectNotFound):
        again = read(selection.indexes)
        if again == found:
            raise
        return apply(again), again


def with_pinned_indexes(pin: Callable[[], _Pinned]) -> _Pinned:
    """Returns what ``pin`` does; calls it again if an index was not the pinned one.

    Raises:
        TonnageError: It wasn't the second time either.
    """
    try:
        return pin()
    except _IndexMismatch:
        try:
            return pin()
        except _IndexMismatch as again:
            raise again.error from None


def check_indexes(indexes: Mapping[str, IndexFile], pins: Mapping[str, ObjectPin], *, where: str) -> None:
    """Checks that the indexes by which files were selected are those that were pinned. For ``with_pinned_indexes``.

    An index may be replaced after it was read, and damaged so that it still lists files which are there.

    Args:
        indexes: The indexes, by path.
        pins: The pins by path.
        where: The source's name in messages.
    """
    for path, index in indexes.items():
        pin = pins.get(path)
        if pin is None:
            continue
        label = f"{where}: {escape_unprintable(path)}"
        is_strong = not pin.etag.startswith(("W/", "last-modified="))
        if (index.etag and pin.etag and is_strong and index.etag != pin.etag) or len(index.content) != pin.size:
            raise _IndexMismatch(SourceChanged(f"{label} was replaced while the files that it lists were pinned."))
        checksum = parse_checksum(pin.checksum)
        if checksum is not None and differing_checksum(index.content, [checksum]) is not None:
            raise _IndexMismatch(
                ChecksumMismatch(f"{label} does not match the {checksum.words} that its source states, {checksum}.")
            )


def listed_files(content: bytes, *, label: str) -> frozenset[str]:
    """Returns the names of the files that an index lists.

    Raises:
        FormatDamaged: See ``parse_weight_map``.
    """
    return frozenset(parse_weight_map(content, label=label).values())


def parse_weight_map(content: bytes, *, label: str) -> dict[str, str]:
    """Returns the name of each tensor's file by an index, by the tensor's name.

    Args:
        content: The index.
        label: How error texts call it.

    Raises:
        FormatDamaged: It is not an index of safetensors files, or is too large.
    """
    if len(content) > MAX_INDEX_BYTES or content.count(b":") > 2 * MAX_INDEX_TENSORS:
        raise FormatDamaged(
            f"{label} has more than {MAX_INDEX_BYTES:,} bytes or {MAX_INDEX_TENSORS:,} tensors; it is not an index of "
            "safetensors files."
        )
    try:
        found = msgspec.json.decode(content, type=_Index).weight_map
    except DECODE_ERRORS as error:
        raise FormatDamaged(
            f"{label} is not an index of safetensors files: {escape_unprintable(str(error))[:200]}.", remedy=_REMEDY
        ) from error
    if not found:
        raise FormatDamaged(f"{label} is not an index of safetensors files: it lists none.", remedy=_REMEDY)
    return found


def apply_indexes(
    selection: Selection,
    contents: Mapping[str, bytes],
    *,
    where: str,
    select: Callable[[Collection[str]], Selection],
) -> Selection:
    """Returns the selection without the weights that are beside an index and that it doesn't list.

    Args:
        selection: The selected objects.
        contents: The selection's indexes, by path.
        where: The source's name in messages.
        select: Returns the selection in which these paths are the model whatever the files' names are. Called if an
            index lists files that the selection doesn't have, such as ``consolidated.safetensors``.

    Raises:
        ObjectNotFound: An index lists a file that is not among the objects.
        FormatDamaged: An index can't be parsed.
    """
    listed = {
        path: _listed_paths(path, content, where=where)
        for path, content in contents.items()
        if _weights(selection, beside=path) or _lists_folders(path, content, _paths(_weights(selection)))
    }
    of_others = {path for path, files in listed.items() if _describes_others(files, _weights(selection, beside=path))}
    listed = {path: files for path, files in listed.items() if path not in of_others}
    if any(files - _paths(_weights(selection)) for files in listed.values()):
        selection = select(frozenset().union(*listed.values()))
    weights = _paths(_weights(selection))
    for path, files in listed.items():
        missing = sorted(files - weights)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ObjectNotFound(
                f"{where}: {escape_unprintable(path)} lists {escape_unprintable(missing[0])[:200]!r}{more}, which "
                f"{'are' if more else 'is'} not there or left out by the patterns.",
                remedy=_REMEDY,
            )
    unused = contents.keys() - listed.keys()
    folders: dict[str, set[str]] = {}
    for path, files in listed.items():
        folders.setdefault(posixpath.dirname(path), set()).update(files)
    surplus = {
        path
        for path in weights
        if (folder := posixpath.dirname(path)) in folders and path not in folders[folder] and not is_single_file(path)
    }
    notes = [_unlisted_note(sorted(surplus))] if surplus else []
    notes += [
        f"{escape_unprintable(path)} was left out: "
        + ("it lists none of the files beside it." if path in of_others else "none of the files beside it is loaded.")
        for path in contents
        if path in unused
    ]
    return selection._replace(
        objects=tuple(each for each in selection.objects if each.path not in surplus | unused),
        notes=(*selection.notes, *notes),
        indexes=tuple(each for each in selection.indexes if each.path not in unused),
    )


def _listed_paths(path: str, content: bytes, *, where: str) -> frozenset[str]:
    names = listed_files(content, label=f"{where}: {escape_unprintable(path)}")
    return frozenset(posixpath.join(posixpath.dirname(path), name) for name in names)


def _weights(selection: Selection, *, beside: str = "") -> list[SelectedObject]:
    """Returns the weights; if ``beside`` is the path of an index, those of its folder."""
    found = [each for each in selection.objects if each.kind == "tensors"]
    return [each for each in found if not beside or posixpath.dirname(each.path) == posixpath.dirname(beside)]


def _lists_folders(path: str, content: bytes, weights: frozenset[str]) -> bool:
    """Returns whether an index that has no weights beside it lists some in folders below it."""
    try:
        return bool(_listed_paths(path, content, where="") & weights)
    except FormatDamaged:
        return False


def _paths(objects: Sequence[SelectedObject]) -> frozenset[str]:
    return frozenset(each.path for each in objects)


def _describes_others(listed: frozenset[str], weights: Sequence[SelectedObject]) -> bool:
    """Returns whether an index is that of the checkpoint from which files of ranks were written.

    vLLM's script for ``sharded_state`` copies it beside them.
    """
    return bool(weights) and all(each.rank is not None for each in weights) and not listed & _paths(weights)


def check_shards(selection: Selection, *, where: str) -> None:
    """Checks that no numbered file is missing, in folders without an index.

    Raises:
        ObjectNotFound: Fewer files are there than their names state.
    """
    weights = [each.path for each in selection.objects if each.kind == "tensors" and each.rank is None]
    folders = {posixpath.dirname(path) for path in find_indexes(each.path for each in selection.objects)}
    missing = missing_shards(path for path in weights if posixpath.dirname(path) not in folders)
    if missing is not None:
        path, found, count = missing
        raise ObjectNotFound(
            f"{where}: {escape_unprintable(path)[:200]} is one of {count} files by its name, but only {found} "
            f"{'is' if found == 1 else 'are'} there.",
            remedy="Upload the model again with all of its files.",
        )


def _unlisted_note(paths: Sequence[str]) -> str:
    shown = ", ".join(escape_unprintable(path)[:100] for path in paths[:5])
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return f"Left out, because the index beside them doesn't list them: {shown}{more}."
