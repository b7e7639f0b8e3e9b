"""Fetches what precedes the tensors of objects: one request for most, a second one for longer indexes and headers.

Where an output head may be an embedding, the configuration and two tensors' headers are fetched as well, to see whether
they are tied. The header of a ``.tensors`` file's first tensor comes with the index: it shows whether the file holds
hashes.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from msgspec import structs

from tonnage.contract.selection import SAFETENSORS_SUFFIX
from tonnage.errors import FormatDamaged, FormatUnsupported, NotATensorizerFile, TonnageError
from tonnage.format.safetensors import LENGTH_BYTES, header_length, parse_safetensors_index
from tonnage.format.tensor_header import parse_tensor_header
from tonnage.format.tensors_index import PREAMBLE_BYTES, TYPICAL_HEAD_BYTES, parse_index, parse_preamble
from tonnage.planning.blueprint import SourceObject
from tonnage.planning.tied_weights import HeaderRange, find_tied
from tonnage.source.checkpoint_files import find_indexes
from tonnage.source.client import RangeRequest, get_ranges
from tonnage.source.index_files import MAX_INDEX_BYTES as MAX_INDEX_FILE_BYTES
from tonnage.source.index_files import parse_weight_map

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tonnage.format.tensors_index import Preamble, TensorsIndex
    from tonnage.loading.peers.headers_file import KnownHeaders
    from tonnage.source.resolve import ResolvedObject, ResolvedRevision

MAX_INDEX_BYTES = 1 << 30
"""Largest accepted index in bytes. A million tensors need about this much; no model has so many."""

TYPICAL_HEADER_BYTES = 128 << 10
"""Bytes of the first request for a safetensors header: enough for about 1,000 tensors."""
MAX_HEADERS_BYTES = 128 << 20
"""Largest accepted size of the headers of all safetensors files of a load, in bytes; large models have 10 MB."""
MAX_LOADED_TENSORS = 1 << 19
"""Largest number of tensors in all safetensors files of a load."""
FIRST_HEADER_BYTES = 1 << 10
"""Bytes that are requested after the index of a ``.tensors`` file: more than a tensor's header has."""


def read_indexes(
    resolved: ResolvedRevision,
    items: Sequence[ResolvedObject],
    *,
    known: KnownHeaders | None = None,
    deadline: float | None = None,
    canceled: Callable[[], bool] | None = None,
    on_retry: Callable[[], None] = lambda: None,
) -> list[SourceObject]:
    """Fetches and parses the indexes of ``.tensors`` objects and the headers of safetensors files among ``items``.

    What ``known`` has need not be fetched. What can't be parsed is fetched once more over new connections, because no
    checksum covers these bytes alone.

    Returns:
        One for each item, in order; companions have no index.

    Raises:
        NotATensorizerFile: A ``.tensors`` object has another format.
        FormatDamaged: An index or a header is inconsistent. Lengths are compared with the object's size first.
        FormatUnsupported: A version or feature that no released tensorizer writes.
        TonnageError: A request failed after all retries.
    """
    try:
        return _read_once(resolved, items, known, deadline=deadline, canceled=canceled, on_retry=on_retry)
    except (FormatDamaged, FormatUnsupported, NotATensorizerFile):
        on_retry()
        return _read_once(resolved, items, None, deadline=deadline, canceled=canceled, on_retry=on_retry)


class HeadDamaged(Exception):  # control flow: the load is planned again
    """The bytes by which an object was planned are not those that its source has."""


class HeadCheck:
    """Asks once for each object's first bytes, before others are fetched again that didn't match a checksum.

    Args:
        resolved: The revision.
        items: The objects to load.
        objects: The same, with what was read of them.
        enabled: Whether the load may be planned again; otherwise nothing is asked.
        deadline: As for ``read_indexes``.
        canceled: Likewise.
    """

    def __init__(
        self,
        resolved: ResolvedRevision,
        items: Sequence[ResolvedObject],
        objects: Sequence[SourceObject],
        *,
        enabled: bool,
        deadline: float | None = None,
        canceled: Callable[[], bool] | None = None,
    ) -> None:
        self._enabled = enabled
        self._resolved = resolved
        self._items = items
        self._objects = objects
        self._deadline = deadline
        self._canceled = canceled
        self._asked: set[int] = set()

    def __call__(self, index: int) -> None:
        """Raises ``HeadDamaged`` if an object begins with other bytes. That it doesn't answer is no reason."""
        head = self._objects[index].head
        if not self._enabled or not head or index in self._asked:
            return
        self._asked.add(index)
        item = self._items[index]
        request = RangeRequest(item.target, self._resolved.providers[item.source], 0, len(head))
        try:
            found = get_ranges([request], deadline=self._deadline, canceled=self._canceled)[0]
        except TonnageError:  # the requests for the rest of the object know how to go on
            return
        if found != head:
            raise HeadDamaged


def _read_once(
    resolved: ResolvedRevision,
    items: Sequence[ResolvedObject],
    known: KnownHeaders | None,
    *,
    deadline: float | None,
    canceled: Callable[[], bool] | None,
    on_retry: Callable[[], None],
) -> list[SourceObject]:
    def fetch(ranges: Sequence[HeaderRange]) -> Sequence[bytes]:
        found = [None if known is None else known.content(*each) for each in ranges]
        fetched = iter(fetch_missing([each for each, content in zip(ranges, found, strict=True) if content is None]))
        return [next(fetched) if content is None else content for content in found]

    def fetch_missing(ranges: Sequence[HeaderRange]) -> Sequence[bytes]:
        if not ranges:
            return []
        requests = [
            RangeRequest(items[at].target, resolved.providers[items[at].source], start, min(end, items[at].pin.size))
            for at, start, end in ranges
        ]
        return get_ranges(requests, deadline=deadline, canceled=canceled, on_retry=on_retry)

    def fetch_ranges(ranges: Mapping[int, tuple[int, int]]) -> dict[int, bytes]:
        found = fetch([HeaderRange(at, start, end) for at, (start, end) in ranges.items()])
        return dict(zip(ranges, found, strict=True))

    # A peer that has headers has compared them with their index.
    index_files = _index_files(items) if known is None else {}
    heads = fetch_ranges(
        {
            at: (0, TYPICAL_HEADER_BYTES if _is_safetensors(item) else TYPICAL_HEAD_BYTES + FIRST_HEADER_BYTES)
            for at, item in enumerate(items)
            if item.kind == "tensors"
        }
        | index_files
    )
    contents = {at: heads.pop(at) for at in index_files}
    ends = {at: _head_length(items[at], head) for at, head in heads.items()}
    _check_headers_size(items, ends)
    remainders = fetch_ranges(
        {
            at: (len(head), ends[at] + (0 if _is_safetensors(items[at]) else FIRST_HEADER_BYTES))
            for at, head in heads.items()
            if ends[at] > len(head)
        }
    )
    objects: list[SourceObject] = []
    tensors = 0
    for at, item in enumerate(items):
        if at not in heads:
            objects.append(_companion(item))
            continue
        data = heads[at] + remainders.pop(at, b"")
        if known is not None and at in known.heads:
            data += known.content(at, len(data), len(data) + FIRST_HEADER_BYTES) or b""
        source = _source_object(item, data, ends[at])
        objects.append(source)
        tensors += len(source.tensors_index.tensors) if source.is_safetensors and source.tensors_index else 0
        if tensors > MAX_LOADED_TENSORS:
            raise FormatUnsupported(f"The safetensors files have more than {MAX_LOADED_TENSORS:,} tensors.")
    for at, content in contents.items():
        objects[at] = structs.replace(objects[at], notes=_compare_with_index(objects, at, content))
    return find_tied(objects, fetch)


def _index_files(items: Sequence[ResolvedObject]) -> dict[int, tuple[int, int]]:
    """Returns the bytes to fetch of the indexes of safetensors files among the objects."""
    indexes = find_indexes(item.path for item in items if item.kind == "companion")
    beside = {posixpath.dirname(item.path) for item in items if item.kind == "tensors" and _is_safetensors(item)}
    return {
        at: (0, item.pin.size)
        for at, item in enumerate(items)
        if item.path in indexes and posixpath.dirname(item.path) in beside and 0 < item.pin.size <= MAX_INDEX_FILE_BYTES
    }


def _compare_with_index(objects: Sequence[SourceObject], at: int, content: bytes) -> tuple[str, ...]:
    """Compares an index of safetensors files with those of its folder; returns notes."""
    from tonnage.planning.safetensors_files import compare_with_index  # not imported for other files

    index = objects[at]
    folder = index.path[: -len(posixpath.basename(index.path))]
    tensors = {
        each.path.removeprefix(folder): frozenset(tensor.name for tensor in each.tensors_index.tensors)
        for each in objects
        if each.tensors_index is not None and each.is_safetensors and each.path.startswith(folder)
    }
    return compare_with_index(parse_weight_map(content, label=index.label), tensors, label=index.label)


def _is_safetensors(item: ResolvedObject) -> bool:
    return item.path.endswith(SAFETENSORS_SUFFIX)


def _head_length(item: ResolvedObject, head: bytes) -> int:
    """Returns the bytes before the first tensor."""
    if _is_safetensors(item):
        return LENGTH_BYTES + header_length(head, file_size=item.pin.size, label=item.target.label)
    return _preamble(item, head).body_offset


def _check_headers_size(items: Sequence[ResolvedObject], ends: Mapping[int, int]) -> None:
    """Limits what the headers of all safetensors files take in memory."""
    total = sum(end for at, end in ends.items() if _is_safetensors(items[at]))
    if total > MAX_HEADERS_BYTES:
        largest = max(ends, key=lambda at: ends[at])
        raise FormatUnsupported(
            f"The headers of the safetensors files have {total:,} bytes, more than {MAX_HEADERS_BYTES:,}; the largest "
            f"is that of {items[largest].target.label}, of {ends[largest]:,} bytes."
        )


def _preamble(item: ResolvedObject, head: bytes) -> Preamble:
    """Parses the preamble and limits the size of the index."""
    label = item.target.label
    preamble = parse_preamble(head, object_size=item.pin.size, label=label)
    if preamble.index_length > MAX_INDEX_BYTES:
        raise FormatDamaged(f"{label} states an index of {preamble.index_length} bytes, at offset 65.")
    return preamble


def _source_object(item: ResolvedObject, data: bytes, end: int) -> SourceObject:
    """Parses an object's first bytes, of which those up to ``end`` precede its tensors."""
    label, size, head = item.target.label, item.pin.size, data[:end]
    if _is_safetensors(item):
        safetensors = parse_safetensors_index(head, file_size=size, label=label)
        return SourceObject(
            label=label, path=item.path, size=size, rank=item.rank, tensors_index=safetensors, head=head
        )
    tensors = parse_index(_preamble(item, head), head[PREAMBLE_BYTES:], object_size=size, label=label)
    return SourceObject(
        label=label,
        path=item.path,
        size=size,
        rank=item.rank,
        tensors_index=tensors,
        head=head,
        unhashed=_is_unhashed(tensors, data, label=label),
    )


def _is_unhashed(tensors: TensorsIndex, data: bytes, *, label: str) -> bool:
    """Returns whether the header of the first tensor is in ``data`` and holds no hash. Others then hold none either."""
    first = tensors.tensors[0]
    if tensors.encrypted or first.data_offset > len(data):
        return False
    try:
        header = parse_tensor_header(
            data[first.header_offset : first.data_offset], first, preamble=tensors.preamble, label=label
        )
    except TonnageError:  # it is compared with its hash when it arrives with the tensor
        return False
    return not header.hashes


def _companion(item: ResolvedObject) -> SourceObject:
    return SourceObject(label=item.target.label, path=item.path, size=item.pin.size, rank=item.rank)
