"""Fetches what precedes the tensors of objects: one request for most, a second one for longer indexes and headers.

Of files that vLLM serialized, the headers of two tensors are fetched as well, to see whether they are tied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.contract.selection import SAFETENSORS_SUFFIX
from tonnage.errors import FormatDamaged, FormatUnsupported
from tonnage.format.safetensors import LENGTH_BYTES, header_length, parse_safetensors_index
from tonnage.format.tensors_index import PREAMBLE_BYTES, TYPICAL_HEAD_BYTES, parse_index, parse_preamble
from tonnage.planning.blueprint import SourceObject
from tonnage.planning.tied_weights import HeaderRange, find_tied
from tonnage.source.client import RangeRequest, get_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tonnage.format.file_index import FileIndex
    from tonnage.format.tensors_index import Preamble
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

    What ``known`` has need not be fetched.

    Returns:
        One for each item, in order; companions have no index.

    Raises:
        NotATensorizerFile: A ``.tensors`` object has another format.
        FormatDamaged: An index or a header is inconsistent. Lengths are compared with the object's size first.
        FormatUnsupported: A version or feature that no released tensorizer writes.
        TonnageError: A request failed after all retries.
    """

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

    heads = fetch_ranges(
        {
            at: (0, TYPICAL_HEADER_BYTES if _is_safetensors(item) else TYPICAL_HEAD_BYTES)
            for at, item in enumerate(items)
            if item.kind == "tensors"
        }
    )
    ends = {at: _head_length(items[at], head) for at, head in heads.items()}
    _check_headers_size(items, ends)
    remainders = fetch_ranges({at: (len(head), ends[at]) for at, head in heads.items() if ends[at] > len(head)})
    objects: list[SourceObject] = []
    tensors = 0
    for at, item in enumerate(items):
        if at not in heads:
            objects.append(_companion(item))
            continue
        source = _source_object(item, (heads[at] + remainders.pop(at, b""))[: ends[at]])
        objects.append(source)
        tensors += len(source.tensors_index.tensors) if source.is_safetensors and source.tensors_index else 0
        if tensors > MAX_LOADED_TENSORS:
            raise FormatUnsupported(f"The safetensors files have more than {MAX_LOADED_TENSORS:,} tensors.")
    return find_tied(objects, fetch)


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


def _source_object(item: ResolvedObject, head: bytes) -> SourceObject:
    label, size = item.target.label, item.pin.size
    tensors: FileIndex
    if _is_safetensors(item):
        tensors = parse_safetensors_index(head, file_size=size, label=label)
    else:
        tensors = parse_index(_preamble(item, head), head[PREAMBLE_BYTES:], object_size=size, label=label)
    return SourceObject(label=label, path=item.path, size=size, rank=item.rank, tensors_index=tensors, head=head)


def _companion(item: ResolvedObject) -> SourceObject:
    return SourceObject(label=item.target.label, path=item.path, size=item.pin.size, rank=item.rank)
