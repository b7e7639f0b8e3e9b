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
from tonnage.source.checkpoint_files import find_indexes, missing_shards
from tonnage.source.responses import strong_etag
from tonnage.source.small_objects import differing_checksum, read_objects

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tonnage.contract import ObjectPin
    from tonnage.source.error_classification import RequestFailure
    from tonnage.source.pinned import RequestContext
    from tonnage.source.request_target import RequestTarget
    from tonnage.source.selection import Selection

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
    selection: Selection, read: Callable[[], Mapping[str, IndexFile]], *, where: str
) -> tuple[Selection, Mapping[str, IndexFile]]:
    """Returns the selection without the weights that its indexes don't list, and the indexes.

    Args:
        selection: The selected objects.
        read: Reads the selection's indexes, by path. Called again if they list what is not there, as they may have been
            damaged on the way or replaced.
        where: The source's name in messages.

    Raises:
        TonnageError: Likewise the second time; see ``apply_indexes``.
    """
    found = read()
    try:
        return apply_indexes(selection, {path: each.content for path, each in found.items()}, where=where), found
    except (FormatDamaged, ObjectNotFound):
        again = read()
        if again == found:
            raise
        return apply_indexes(selection, {path: each.content for path, each in again.items()}, where=where), again


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
        found = frozenset(msgspec.json.decode(content, type=_Index).weight_map.values())
    except DECODE_ERRORS as error:
        raise FormatDamaged(
            f"{label} is not an index of safetensors files: {escape_unprintable(str(error))[:200]}.", remedy=_REMEDY
        ) from error
    if not found:
        raise FormatDamaged(f"{label} is not an index of safetensors files: it lists none.", remedy=_REMEDY)
    return found


def apply_indexes(selection: Selection, contents: Mapping[str, bytes], *, where: str) -> Selection:
    """Returns the selection without the weights that are beside an index and that it doesn't list.

    Args:
        selection: The selected objects.
        contents: The selection's indexes, by path.
        where: The source's name in messages.

    Raises:
        ObjectNotFound: An index lists a file that is not among the objects.
        FormatDamaged: An index can't be parsed.
    """
    weights = {each.path for each in selection.objects if each.kind == "tensors"}
    listed: dict[str, set[str]] = {}
    unused = set()
    for path, content in contents.items():
        folder = posixpath.dirname(path)
        if not any(posixpath.dirname(each) == folder for each in weights):
            unused.add(path)
            continue
        names = listed_files(content, label=f"{where}: {escape_unprintable(path)}")
        files = {posixpath.join(folder, name) for name in names}
        missing = sorted(files - weights)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ObjectNotFound(
                f"{where}: {escape_unprintable(path)} lists {escape_unprintable(missing[0])[:200]!r}{more}, which "
                f"{'are' if more else 'is'} not there or left out by the patterns.",
                remedy=_REMEDY,
            )
        listed.setdefault(folder, set()).update(files)
    surplus = {path for path in weights if (folder := posixpath.dirname(path)) in listed and path not in listed[folder]}
    notes = [_unlisted_note(sorted(surplus))] if surplus else []
    notes += [f"{escape_unprintable(path)} was left out: none of the files beside it is loaded." for path in unused]
    return selection._replace(
        objects=tuple(each for each in selection.objects if each.path not in surplus | unused),
        notes=(*selection.notes, *notes),
        indexes=tuple(each for each in selection.indexes if each.path not in unused),
    )


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
