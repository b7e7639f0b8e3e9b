"""Reserves room on a node for loads, so that its entries never have more bytes than the administrator allows.

The reservations are part of the ``NodeCache``, which is written with its resource version: of two loads that don't fit
together, only one gets room, whatever the order of events and however many controllers run.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tonnage.contract.sizes import human_bytes
from tonnage_operator.api.nodecache import MAX_MODELS, CacheEntry, EntryState
from tonnage_operator.domain.installation import MediumLimits

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from tonnage_operator.api.modelweights import Medium
    from tonnage_operator.api.nodecache import EntryKey

MAX_LISTED = 5
"""Entries that a message names."""

_NO_LIMITS = MediumLimits()


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """A load that needs room for an entry, or already has it."""

    key: EntryKey
    bytes: int
    """Of the whole entry once it is loaded."""
    since: str
    """When it was first asked for, in RFC 3339: earlier ones get room first."""
    refs: frozenset[str] = frozenset()
    """The objects that it is for, as ``namespace/name``."""

    @property
    def namespaces(self) -> frozenset[str]:
        """The namespaces that it counts for; see ``namespaces_of``."""
        return _namespaces(self.key.cache_key, self.refs)


@dataclass(frozen=True, slots=True)
class Holder:
    """An entry that takes room."""

    name: str
    models: tuple[str, ...]
    namespaces: frozenset[str]
    bytes: int


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a load has no room."""

    key: EntryKey
    required_bytes: int
    """Those that the load needs in addition to what its entry has."""
    free_bytes: int
    capacity_bytes: int
    namespace: str
    """The namespace whose limit is reached; empty if it is the node's."""
    waits: bool
    """Unneeded entries make room: try again."""
    holders: tuple[Holder, ...] = ()

    def describe(self, node: str, namespace: str) -> str:
        """Returns a sentence with the numbers, and with who has the room, as far as a namespace may see that."""
        medium = self.key.medium.value
        limited = f"Namespace {self.namespace}" if self.namespace == namespace else "A namespace"
        whose = f"{limited} on {node}" if self.namespace else node
        text = (
            f"{whose} has no room in {medium}: {_size(self.required_bytes)} needed, {_size(self.free_bytes)} of "
            f"{_size(self.capacity_bytes)} left."
        )
        own = [each for each in self.holders if namespace in each.namespaces]
        named = [f"{_name(each, namespace)} has {_size(each.bytes)}" for each in own[:MAX_LISTED]]
        if more := own[MAX_LISTED:]:
            named.append(f"{len(more)} more of this namespace have {_size(sum(each.bytes for each in more))}")
        if others := sum(each.bytes for each in self.holders if namespace not in each.namespaces):
            named.append(f"other namespaces have {_size(others)}")
        if named:
            text += f" {'; '.join(named)}."
        return text + (" Unneeded entries are being evicted." if self.waits else "")


def _name(holder: Holder, namespace: str) -> str:
    own = [each for each in holder.models if each.partition("/")[0] == namespace]
    return own[0] if own else holder.name


def _size(count: int) -> str:
    return human_bytes(count)


@dataclass(frozen=True)
class Reservations:
    """The entries with what is reserved, and the loads without room."""

    entries: dict[EntryKey, CacheEntry]
    shortages: dict[EntryKey, Shortage] = field(default_factory=dict)


def total_bytes(entry: CacheEntry) -> int:
    """Returns the bytes that an entry has and that are reserved for it."""
    return entry.bytes + entry.reserved_bytes


def namespaces_of(entry: CacheEntry) -> frozenset[str]:
    """Returns the namespaces that an entry counts for: the one that has it to itself, or those of its objects."""
    return _namespaces(entry.name, entry.models)


def _namespaces(cache_key: str, refs: Iterable[str]) -> frozenset[str]:
    own, separator, _ = cache_key.rpartition("/")
    return frozenset({own}) if separator else frozenset(ref.partition("/")[0] for ref in refs)


def has_room(entry: CacheEntry | None, required_bytes: int) -> bool:
    """Returns whether room for a load of this size is reserved, or in use by the entry already."""
    return entry is not None and entry.state is not EntryState.EVICTING and total_bytes(entry) >= required_bytes


def effective_capacity(limits: MediumLimits, *, file_system_bytes: int, min_free_bytes: int) -> int:
    """Returns the capacity of a node's medium: the administrator's, or what its file system can have if that is less.

    0 if the administrator sets none.
    """
    if not limits.capacity or not file_system_bytes:
        return limits.capacity
    return max(1, min(limits.capacity, file_system_bytes - min_free_bytes))


def reserve(
    entries: Mapping[EntryKey, CacheEntry],
    requests: Iterable[LoadRequest],
    *,
    limits: Mapping[Medium, MediumLimits],
    evictable: Collection[EntryKey],
) -> Reservations:
    """Reserves room for loads in the order of their requests; what doesn't fit has a shortage.

    A load for which evictions make room keeps its claim to it: later ones don't take it. One for which they can't does
    not hold up others.

    Args:
        entries: All entries of the node.
        requests: The loads that are running or about to begin.
        limits: The limits of each medium, with the effective capacity.
        evictable: The entries that may be evicted.
    """
    after = dict(entries)
    shortages: dict[EntryKey, Shortage] = {}
    ordered = sorted(_largest_requests(requests), key=lambda each: (each.since, each.key))
    for medium in {each.key.medium for each in ordered}:
        limit = limits.get(medium, _NO_LIMITS)
        accounts = _Accounts(after, medium, evictable)
        for request in ordered:
            entry = after.get(request.key)
            if request.key.medium is not medium or (entry and entry.state is EntryState.EVICTING):
                continue
            extra = request.bytes - (total_bytes(entry) if entry else 0)
            if extra <= 0:
                continue
            shortage = accounts.find_shortage(request, extra, limit)
            if shortage:
                shortages[request.key] = shortage
                continue
            accounts.add(extra, request.namespaces)
            if entry is None:
                models = tuple(sorted(request.refs))[:MAX_MODELS]
                entry = CacheEntry(name=request.key.cache_key, medium=medium, state=EntryState.PARTIAL, models=models)
            after[request.key] = entry.model_copy(update={"reserved_bytes": entry.reserved_bytes + extra})
    return Reservations(after, shortages)


def _largest_requests(requests: Iterable[LoadRequest]) -> list[LoadRequest]:
    """Returns one request for each entry: loaders of one entry wait for each other."""
    merged: dict[EntryKey, LoadRequest] = {}
    for each in requests:
        known = merged.get(each.key)
        merged[each.key] = (
            LoadRequest(
                each.key,
                max(each.bytes, known.bytes),
                min(each.since, known.since),
                each.refs | known.refs,
            )
            if known
            else each
        )
    return list(merged.values())


class _Accounts:
    """The bytes of one medium, in all and by namespace, while room is reserved."""

    def __init__(self, entries: Mapping[EntryKey, CacheEntry], medium: Medium, evictable: Collection[EntryKey]) -> None:
        self._all_entries = entries
        self._medium = medium
        known = self._entries()
        going = [entry for entry in known if entry.entry_key in evictable or entry.state is EntryState.EVICTING]
        self._total = sum(map(total_bytes, known))
        self._promised = 0
        """Room that evictions make for loads that wait."""
        self._evictable = sum(map(total_bytes, going))
        self._by_namespace = _by_namespace(known)
        self._evictable_by_namespace = _by_namespace(going)

    def _entries(self) -> list[CacheEntry]:
        return [entry for key, entry in self._all_entries.items() if key.medium is self._medium]

    def add(self, count: int, namespaces: Iterable[str]) -> None:
        self._total += count
        for name in namespaces:
            self._by_namespace[name] += count

    def find_shortage(self, request: LoadRequest, extra: int, limit: MediumLimits) -> Shortage | None:
        """Returns why a request has no room; None if it has."""
        allowed = limit.namespace_capacity
        for name in sorted(request.namespaces) if allowed else ():
            used = self._by_namespace[name]
            if used + extra > allowed:
                waits = used + extra - self._evictable_by_namespace[name] <= allowed
                return self._shortage(request, extra, allowed - used, allowed, namespace=name, waits=waits)
        if not limit.capacity or self._total + self._promised + extra <= limit.capacity:
            return None
        waits = self._total + self._promised + extra - self._evictable <= limit.capacity
        found = self._shortage(request, extra, limit.capacity - self._total, limit.capacity, waits=waits)
        self._promised += extra if waits else 0
        return found

    def _shortage(
        self, request: LoadRequest, extra: int, free: int, capacity: int, *, waits: bool, namespace: str = ""
    ) -> Shortage:
        holders = [
            Holder(entry.name, entry.models, namespaces_of(entry), total_bytes(entry))
            for entry in sorted(self._entries(), key=lambda each: (-total_bytes(each), each.name))
            if total_bytes(entry) and (not namespace or namespace in namespaces_of(entry))
        ]
        return Shortage(request.key, extra, max(0, free), capacity, namespace, waits, tuple(holders))


def _by_namespace(entries: Iterable[CacheEntry]) -> defaultdict[str, int]:
    sums: defaultdict[str, int] = defaultdict(int)
    for entry in entries:
        for name in namespaces_of(entry):
            sums[name] += total_bytes(entry)
    return sums


def namespace_usage(entries: Iterable[CacheEntry]) -> dict[str, tuple[int, int]]:
    """Returns used and reserved bytes of each namespace."""
    found: dict[str, tuple[int, int]] = {}
    for entry in entries:
        for name in namespaces_of(entry):
            used, reserved = found.get(name, (0, 0))
            found[name] = (used + entry.bytes, reserved + entry.reserved_bytes)
    return found


def find_size_problem(size: int, limits: MediumLimits, medium: Medium) -> str:
    """Returns why no node may ever hold an entry of this size, as a sentence; empty if nodes may."""
    for limit, value, what in (
        (limits.max_entry_size, "maxEntrySize", "one entry may have"),
        (limits.namespace_capacity, "namespaceCapacity", "the entries of a namespace may have on a node"),
        (limits.capacity, "capacity", "all entries of a node may have"),
    ):
        if limit and size > limit:
            return (
                f"The model has {_size(size)}, and {what} {_size(limit)} in {medium.value} "
                f"(the chart's value cache.{medium.value.lower()}.{value}): no node can hold it. Choose another medium "
                "or delivery, fewer files, or ask the administrator."
            )
    return ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What eviction has to know about one medium."""

    capacity: int
    """0: no limit."""
    high: int
    """Bytes above which unneeded entries are evicted."""
    low: int
    """Bytes down to which they are evicted."""
    pressure: bool
    """Usage was above ``high``, and has not been at ``low`` or below since."""


def select_for_room(
    entries: Iterable[CacheEntry],
    shortages: Iterable[Shortage],
    usage: Usage,
    *,
    evictable: Collection[EntryKey],
    interrupted: Collection[EntryKey],
) -> set[EntryKey]:
    """Returns the entries to evict, so that waiting loads fit and usage falls from the high to the low watermark.

    Args:
        entries: All entries of one medium.
        shortages: Of loads on it.
        usage: Its watermarks and state.
        evictable: Unneeded entries.
        interrupted: What interrupted loads have left. It is removed for waiting loads only, after all evictable ones.
    """
    oldest_first = sorted(entries, key=lambda entry: (entry.last_used_time or "", entry.entry_key))
    candidates = [entry for entry in oldest_first if entry.entry_key in evictable]
    dead = [entry for entry in oldest_first if entry.entry_key in interrupted]
    waiting = [each for each in shortages if each.waits]
    total = sum(total_bytes(entry) for entry in oldest_first if entry.state is not EntryState.EVICTING)
    needed = sum(each.required_bytes for each in waiting if not each.namespace)
    enough = usage.capacity - needed if needed else total
    chosen: set[EntryKey] = set()
    for group, goal in ((candidates, min(enough, usage.low) if usage.pressure else enough), (dead, enough)):
        for entry in group:
            if total > goal:
                chosen.add(entry.entry_key)
                total -= total_bytes(entry)
    for name in sorted({each.namespace for each in waiting} - {""}):
        own = [entry for entry in oldest_first if name in namespaces_of(entry)]
        going = sum(
            total_bytes(entry) for entry in own if entry.state is EntryState.EVICTING or entry.entry_key in chosen
        )
        of_name = [each for each in waiting if each.namespace == name]
        missing = sum(each.required_bytes for each in of_name) - of_name[0].free_bytes - going
        for entry in (*candidates, *dead):
            if missing > 0 and entry in own and entry.entry_key not in chosen:
                chosen.add(entry.entry_key)
                missing -= total_bytes(entry)
    return chosen
