"""Reads the indexes of safetensors files at the source, and leaves out the files that they don't list."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

import msgspec

from tonnage.contract.plan import DECODE_ERRORS
from tonnage.errors import FormatDamaged, ObjectNotFound, escape_unprintable
from tonnage.source.checkpoint_files import find_indexes, missing_shards
from tonnage.source.client import Request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.source.error_classification import RequestFailure
    from tonnage.source.pinned import RequestContext
    from tonnage.source.request_target import RequestTarget
    from tonnage.source.selection import Selection

MAX_INDEX_BYTES = 64 << 20
"""Largest accepted index in bytes. The index of a model of 100,000 tensors has about 10 MB."""
MAX_INDEX_TENSORS = 1 << 20
_REMEDY = "Upload the model again with all of its files; or leave the index out with --exclude, to load all files."


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def read_index_files(
    context: RequestContext, targets: Sequence[RequestTarget]
) -> tuple[list[bytes], RequestFailure | None]:
    """Requests indexes; returns their contents, and the first failure if there is one."""
    requests = [Request(target=target, provider=context.provider, limit=MAX_INDEX_BYTES + 1) for target in targets]
    responses = context.client.run(requests)
    failure = next((response.failure for response in responses if response.failure is not None), None)
    return [response.body for response in responses], failure


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
        return frozenset(msgspec.json.decode(content, type=_Index).weight_map.values())
    except DECODE_ERRORS as error:
        raise FormatDamaged(
            f"{label} is not an index of safetensors files: {escape_unprintable(str(error))[:200]}.", remedy=_REMEDY
        ) from error


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
