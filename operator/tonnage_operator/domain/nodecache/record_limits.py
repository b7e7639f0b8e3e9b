"""Cuts the record of a node to what the API server takes, so that it can always be written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from tonnage.contract.report import VERIFIED_BY_LIMIT
from tonnage_operator.api.nodecache import MAX_RECORDED_ENTRIES, EntryState
from tonnage_operator.domain.observed.held_entries import MAX_IMAGE_LENGTH, MAX_RANKS_LENGTH

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage_operator.api.nodecache import CacheEntry

MAX_BYTES: Final = 2**63 - 1
"""The largest number in a status."""
MAX_RECORD_BYTES: Final = 768 << 10
"""Bytes of all entries of a record. etcd takes objects of about 1.5 MB, with the API server's managed fields."""
MAX_TEXT: Final = 64
MAX_COMMAND: Final = 256

_ENTRY_BYTES: Final = 320
"""What an entry takes besides its name, its ranks and the objects that refer to it."""
_ORDER: Final = (EntryState.EVICTING, EntryState.READY, EntryState.LOADING, EntryState.PARTIAL)


class CutEntries(NamedTuple):
    """The entries that go into a record."""

    entries: tuple[CacheEntry, ...]
    """Sorted by medium and name."""
    omitted: int
    """Entries that don't fit."""


def cut_entries(entries: Iterable[CacheEntry]) -> CutEntries:
    """Returns the entries that a record can hold, shortened to what its schema allows.

    Entries that objects refer to are kept before others, and complete ones before partial ones. If their objects' names
    don't fit, each entry lists as many as its share of the record allows; entries keep at least their first.
    """
    preferred = sorted(
        map(_shortened, entries), key=lambda entry: (not entry.models, _ORDER.index(entry.state), entry.name)
    )
    kept: list[CacheEntry] = []
    left = MAX_RECORD_BYTES
    for entry in preferred[:MAX_RECORDED_ENTRIES]:
        texts = (entry.name, entry.ranks, entry.image, entry.verified_by, entry.served_by, *entry.models[:1])
        cost = _ENTRY_BYTES + sum(len(text or "") for text in texts)
        if cost > left:
            break
        left -= cost
        kept.append(entry)
    listed = [_with_models(entry, left // len(kept)) for entry in kept]
    return CutEntries(
        tuple(sorted(listed, key=lambda entry: (entry.medium.value, entry.name))), len(preferred) - len(kept)
    )


def _shortened(entry: CacheEntry) -> CacheEntry:
    fields: dict[str, object] = {}
    if not 0 <= entry.bytes <= MAX_BYTES:
        fields["bytes"] = min(max(entry.bytes, 0), MAX_BYTES)
    if len(entry.ranks or "") > MAX_RANKS_LENGTH:
        fields["ranks"] = entry.ranks and entry.ranks[:MAX_RANKS_LENGTH].rpartition(",")[0]
    if entry.image and len(entry.image) > MAX_IMAGE_LENGTH:
        fields["image"] = entry.image[:MAX_IMAGE_LENGTH]
    if entry.served_by and (len(entry.served_by) > MAX_COMMAND or not entry.served_by.isprintable()):
        printable = "".join(filter(str.isprintable, entry.served_by))
        fields["served_by"] = printable[:MAX_COMMAND]
    for name, limit in (("verified", MAX_TEXT), ("revision", MAX_TEXT), ("verified_by", VERIFIED_BY_LIMIT)):
        if len(text := getattr(entry, name) or "") > limit:
            fields[name] = text[:limit]
    return entry.model_copy(update=fields) if fields else entry


def _with_models(entry: CacheEntry, share: int) -> CacheEntry:
    size, count = 0, 1
    for ref in entry.models[1:]:
        size += len(ref) + 3
        if size > share:
            return entry.model_copy(update={"models": entry.models[:count]})
        count += 1
    return entry
