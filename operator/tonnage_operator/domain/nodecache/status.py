"""Builds the status of a ``NodeCache``: usage of each medium, columns, conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.contract.sizes import human_bytes
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import (
    MAX_NAMESPACES,
    EntryState,
    MediumStatus,
    NamespaceUsage,
    NodeCacheStatus,
    NodeCacheSummary,
)
from tonnage_operator.domain import conditions, units
from tonnage_operator.domain.conditions import Observation
from tonnage_operator.domain.nodecache.capacity import effective_capacity, namespace_usage
from tonnage_operator.domain.nodecache.record_limits import MAX_BYTES, cut_entries
from tonnage_operator.domain.reasons import ConditionReason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage_operator.api.nodecache import CacheEntry
    from tonnage_operator.domain.installation import MediumLimits
    from tonnage_operator.domain.nodecache.eviction import Eviction
    from tonnage_operator.domain.nodecache.snapshot import NodeSnapshot

_PRESSURE_THRESHOLD = 0.05
"""Where no capacity is set: fraction of a medium's size; fewer free bytes set ``CapacityPressure``."""


def effective_limits(snapshot: NodeSnapshot) -> dict[Medium, MediumLimits]:
    """Returns the limits of each medium, with the capacity that its file system can have."""
    found = {}
    for medium, host in snapshot.installation.media.items():
        size = _file_system_bytes(snapshot, medium)
        min_free = max(host.min_free_bytes, size * host.min_free_percent // 100)
        capacity = effective_capacity(host.limits, file_system_bytes=size, min_free_bytes=min_free)
        found[medium] = host.limits._replace(capacity=capacity)
    return found


def build_status(snapshot: NodeSnapshot, eviction: Eviction) -> NodeCacheStatus:
    """Returns the complete status."""
    listed, omitted = cut_entries(eviction.entries.values())
    media = tuple(
        _medium_status(snapshot, eviction, medium, [entry for entry in listed if entry.medium is medium])
        for medium in sorted(snapshot.installation.media, key=lambda medium: medium.value)
    )
    by_name = {state.name: state for state in media}
    memory, disk = by_name.get(Medium.MEMORY), by_name.get(Medium.DISK)
    ready = Observation("Ready", status=True, reason=ConditionReason.NODE_READY, message="Loads can run here.")
    if not snapshot.node.ready:
        ready = Observation(
            "Ready", status=False, reason=ConditionReason.NODE_NOT_READY, message="The node is not ready."
        )
    observed = [ready, _pressure_condition(media, eviction)]
    if omitted:
        message = f"{omitted} entries don't fit into this record: they are not evicted until others are gone."
        observed.append(
            Observation("RecordTruncated", status=True, reason=ConditionReason.TOO_MANY_ENTRIES, message=message)
        )
    return NodeCacheStatus(
        bootID=snapshot.node.boot_id or None,
        media=media or None,
        entries=listed or None,
        summary=NodeCacheSummary(
            memory_used=_column(memory.used_bytes) if memory else "",
            memory_reserved=_column(memory.reserved_bytes) if memory else "",
            memory_free=_column(memory.free_bytes) if memory and memory.capacity_bytes else "",
            disk_used=_column(disk.used_bytes) if disk else "",
            disk_reserved=_column(disk.reserved_bytes) if disk else "",
            disk_free=_column(disk.free_bytes) if disk and disk.capacity_bytes else "",
            entries=sum(entry.state is EntryState.READY and entry.image is None for entry in listed),
            loading=sum(entry.state is EntryState.LOADING for entry in listed),
        ),
        conditions=conditions.merge(
            snapshot.status.conditions or (), observed, now=units.format_time(snapshot.now), generation=None
        ),
    )


def _column(count: int) -> str:
    """Returns a size for a column of kubectl, in which an empty text would mean that it is not known."""
    return human_bytes(count, "column") or "0"


def _old_state(snapshot: NodeSnapshot, medium: Medium) -> MediumStatus:
    states = (state for state in snapshot.status.media or () if state.name is medium)
    return next(states, None) or MediumStatus(name=medium)


def _file_system_bytes(snapshot: NodeSnapshot, medium: Medium) -> int:
    reported = snapshot.reported_media.get(medium)
    size = reported.capacity_bytes if reported else _old_state(snapshot, medium).file_system_bytes
    return min(size, MAX_BYTES)


def _medium_status(
    snapshot: NodeSnapshot, eviction: Eviction, medium: Medium, entries: Sequence[CacheEntry]
) -> MediumStatus:
    reported, old, limits = snapshot.reported_media.get(medium), _old_state(snapshot, medium), eviction.limits[medium]
    used = min(sum(entry.bytes for entry in entries), MAX_BYTES)
    reserved = min(sum(entry.reserved_bytes for entry in entries), MAX_BYTES)
    capacity, free = old.capacity_bytes, old.free_bytes
    if limits.capacity:
        capacity, free = limits.capacity, max(0, limits.capacity - used - reserved)
    elif reported:
        capacity, free = reported.capacity_bytes, reported.free_bytes
    usage = namespace_usage(entries) if limits.namespace_capacity else {}
    largest = sorted(usage.items(), key=lambda item: (-sum(item[1]), item[0]))[:MAX_NAMESPACES]
    return MediumStatus(
        name=medium,
        capacity_bytes=capacity,
        used_bytes=used,
        reserved_bytes=reserved,
        free_bytes=free,
        file_system_bytes=_file_system_bytes(snapshot, medium),
        pressure=eviction.usages[medium].pressure,
        namespaces=tuple(
            NamespaceUsage(name=name, used_bytes=min(in_use, MAX_BYTES), reserved_bytes=min(asked, MAX_BYTES))
            for name, (in_use, asked) in sorted(largest)
        )
        or None,
    )


def _pressure_condition(media: Sequence[MediumStatus], eviction: Eviction) -> Observation:
    """Returns the condition ``CapacityPressure``: a load waits, or usage is above a watermark, or little is free."""
    name, problems, reason = "CapacityPressure", [], ConditionReason.ALMOST_FULL
    limited = [state for state in media if eviction.limits[state.name].capacity]
    for state in limited:
        waiting = sum(key.medium is state.name for key in eviction.shortages)
        is_high = state.used_bytes + state.reserved_bytes > eviction.usages[state.name].high
        if not (waiting or is_high or state.pressure):
            continue
        evicting = any(
            entry.medium is state.name and entry.state is EntryState.EVICTING for entry in eviction.entries.values()
        )
        text = _describe_usage(state)
        if waiting:
            text += f", and {waiting} {'load waits' if waiting == 1 else 'loads wait'} for room"
            reason = ConditionReason.LOADS_WAITING
        elif evicting and reason is not ConditionReason.LOADS_WAITING:
            reason = ConditionReason.EVICTING
        text += (
            "; unneeded entries are being evicted."
            if evicting
            else "; nothing can be evicted: delete unneeded ModelWeights, or raise the chart's capacity."
        )
        problems.append(text)
    tight = [
        state.name.value
        for state in media
        if state not in limited
        and state.capacity_bytes
        and state.free_bytes < state.capacity_bytes * _PRESSURE_THRESHOLD
    ]
    if tight:
        problems.append(
            f"Less than 5% is free on {', '.join(tight)}: delete unneeded ModelWeights, or enlarge the medium."
        )
    if problems:
        return Observation(name, status=True, reason=reason, message=" ".join(problems))
    parts = [f"{_describe_usage(state)}." for state in limited]
    if len(limited) < len(media):
        parts.append("At least 5% of each medium is free." if not limited else "At least 5% of the other one is free.")
    return Observation(name, status=False, reason=ConditionReason.ROOM_LEFT, message=" ".join(parts))


def _describe_usage(state: MediumStatus) -> str:
    taken = human_bytes(state.used_bytes + state.reserved_bytes)
    return f"{state.name.value}: {taken} of {human_bytes(state.capacity_bytes)} are used or reserved"
