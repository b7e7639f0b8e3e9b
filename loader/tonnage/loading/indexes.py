"""Fetches preamble and index of ``.tensors`` objects: one request of 262,217 bytes, a second one for longer indexes.

Of files that vLLM serialized, the headers of two tensors are fetched as well, to see whether they are tied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.errors import FormatDamaged
from tonnage.format.tensors_index import PREAMBLE_BYTES, TYPICAL_HEAD_BYTES, parse_index, parse_preamble
from tonnage.planning.blueprint import SourceObject
from tonnage.planning.tied_weights import HeaderRange, find_tied
from tonnage.source.client import RangeRequest, get_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tonnage.format.tensors_index import Preamble
    from tonnage.source.resolve import ResolvedObject, ResolvedRevision

MAX_INDEX_BYTES = 1 << 30
"""Largest accepted index in bytes. A million tensors need about this much; no model has so many."""


def read_indexes(
    resolved: ResolvedRevision,
    items: Sequence[ResolvedObject],
    *,
    deadline: float | None = None,
    canceled: Callable[[], bool] | None = None,
    on_retry: Callable[[], None] = lambda: None,
) -> list[SourceObject]:
    """Fetches and parses the indexes of all ``.tensors`` objects among ``items``.

    Returns:
        One for each item, in order; companions have no index.

    Raises:
        NotATensorizerFile: An object has another format.
        FormatDamaged: An index is inconsistent. Lengths are compared with the object's size before they are used.
        FormatUnsupported: A version or feature that no released tensorizer writes.
        TonnageError: A request failed after all retries.
    """
    wanted = [number for number, item in enumerate(items) if item.kind == "tensors"]

    def fetch(ranges: Sequence[HeaderRange]) -> Sequence[bytes]:
        requests = [
            RangeRequest(items[at].target, resolved.providers[items[at].source], start, min(end, items[at].pin.size))
            for at, start, end in ranges
        ]
        return get_ranges(requests, deadline=deadline, canceled=canceled, on_retry=on_retry)

    def fetch_ranges(ranges: Mapping[int, tuple[int, int]]) -> dict[int, bytes]:
        found = fetch([HeaderRange(at, start, end) for at, (start, end) in ranges.items()])
        return dict(zip(ranges, found, strict=True))

    heads = fetch_ranges(dict.fromkeys(wanted, (0, TYPICAL_HEAD_BYTES)))
    preambles = {at: _preamble(items[at], head) for at, head in heads.items()}
    ends = {at: preamble.body_offset for at, preamble in preambles.items()}
    remainders = fetch_ranges({at: (len(head), ends[at]) for at, head in heads.items() if ends[at] > len(head)})
    objects = [
        _source_object(item, preambles[at], heads[at] + remainders.get(at, b"")) if at in heads else _companion(item)
        for at, item in enumerate(items)
    ]
    return find_tied(objects, fetch)


def _preamble(item: ResolvedObject, head: bytes) -> Preamble:
    """Parses the preamble and limits the size of the index."""
    label = item.target.label
    preamble = parse_preamble(head, object_size=item.pin.size, label=label)
    if preamble.index_length > MAX_INDEX_BYTES:
        raise FormatDamaged(f"{label} states an index of {preamble.index_length} bytes, at offset 65.")
    return preamble


def _source_object(item: ResolvedObject, preamble: Preamble, head: bytes) -> SourceObject:
    label, size, end = item.target.label, item.pin.size, preamble.body_offset
    tensors = parse_index(preamble, head[PREAMBLE_BYTES:end], object_size=size, label=label)
    return SourceObject(label=label, path=item.path, size=size, rank=item.rank, tensors_index=tensors, head=head[:end])


def _companion(item: ResolvedObject) -> SourceObject:
    return SourceObject(label=item.target.label, path=item.path, size=item.pin.size, rank=item.rank)
