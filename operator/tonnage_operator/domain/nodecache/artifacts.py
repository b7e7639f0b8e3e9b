"""Decides the records of engine artifacts on a node, and which are too large or too old."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from tonnage_operator.api.nodecache import CacheEntry, EntryState
from tonnage_operator.domain import naming, units
from tonnage_operator.domain.observed import job_results

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from tonnage_operator.api.nodecache import EntryKey
    from tonnage_operator.domain.nodecache.snapshot import NodeSnapshot
    from tonnage_operator.domain.observed.held_entries import HeldEntry
    from tonnage_operator.domain.observed.pod import LoaderStatus, Pod

CAUSE_AGE: Final = "Age"
CAUSE_SIZE: Final = "Size"
_USE_INTERVAL: Final = 1 / 16
"""How often the last use of artifacts is recorded while a pod has them, as a fraction of their maximum age."""


def artifacts_by_object(entries: Iterable[CacheEntry], consumers: Iterable[Pod]) -> dict[str, set[EntryKey]]:
    """Returns the artifacts that are or will be on a node, by the ``namespace/name`` of their object.

    Args:
        entries: The node's record.
        consumers: Users' pods on it.
    """
    found: dict[str, set[EntryKey]] = defaultdict(set)
    for entry in entries:
        if naming.is_artifacts_key(entry.name):
            for ref in entry.models:
                found[ref].add(entry.entry_key)
    for pod in consumers:
        for held in pod.held_entries:
            if held.is_artifacts:
                found[held.ref].add(held.entry_key)
    return dict(found)


def apply_artifacts(snapshot: NodeSnapshot, entries: Mapping[EntryKey, CacheEntry]) -> dict[EntryKey, CacheEntry]:
    """Adds the artifacts that users' pods hold, and updates when they were used, and the size that loaders reported."""
    holders: dict[EntryKey, list[_Holder]] = defaultdict(list)
    for pod in sorted(snapshot.consumers, key=lambda pod: (pod.created, pod.uid)):
        loaders = {each.name: each for each in pod.loaders}
        for held in pod.held_entries:
            if held.is_artifacts:
                holders[held.entry_key].append(_Holder(pod, held, loaders.get(held.container)))
    updated = dict(entries)
    for key, found in holders.items():
        new = next((each for each in found if each.has_started and not each.pod.is_terminal), None)
        entry = updated.get(key)
        if entry is None and new is not None:
            entry = _new_entry(new.held)
        if entry is not None:
            updated[key] = _update(snapshot, entry, found)
    return updated


class _Holder(NamedTuple):
    """A pod with a directory of artifacts."""

    pod: Pod
    held: HeldEntry
    loader: LoaderStatus | None

    @property
    def has_started(self) -> bool:
        """Whether the loader has started, so that the directory may exist."""
        return self.loader is not None and self.loader.started

    @property
    def size(self) -> int | None:
        """The size when the pod started; None while it is not known."""
        report = job_results.termination_report(self.loader) if self.loader else None
        sizes = {each.name: each.bytes for each in report.artifacts} if report else {}
        return sizes.get(naming.entry_of(self.held.key))


def _new_entry(held: HeldEntry) -> CacheEntry:
    return CacheEntry(name=held.key, medium=held.medium, state=EntryState.READY, models=(held.ref,), image=held.image)


def _update(snapshot: NodeSnapshot, entry: CacheEntry, holders: Sequence[_Holder]) -> CacheEntry:
    """Returns the record after these pods, the oldest first, have used the artifacts."""
    sizes = [size for each in holders if (size := each.size) is not None]
    last_used = max(entry.last_used_time or "", holders[-1].pod.created) or units.format_time(snapshot.now)
    interval = units.parse_duration(snapshot.installation.artifacts.max_age) * _USE_INTERVAL
    if any(not each.pod.is_terminal for each in holders) and _age(snapshot, last_used) > interval:
        last_used = units.format_time(snapshot.now)
    fields = {
        "state": EntryState.READY if entry.state is EntryState.PARTIAL else entry.state,
        "bytes": sizes[-1] if sizes else entry.bytes,
        "last_used_time": last_used,
    }
    return entry.model_copy(update=fields)


def find_excess_artifacts(
    snapshot: NodeSnapshot, entries: Mapping[EntryKey, CacheEntry], held: Collection[EntryKey]
) -> dict[EntryKey, str]:
    """Returns the artifacts to evict although their object exists, each with the cause.

    Args:
        snapshot: The node.
        entries: The entries on the node.
        held: Entries of pods that exist, which stay.
    """
    settings = snapshot.installation.artifacts
    max_age = units.parse_duration(settings.max_age)
    max_bytes, max_node_bytes = units.parse_quantity(settings.max_bytes), units.parse_quantity(settings.max_node_bytes)
    artifacts = {key: entry for key, entry in entries.items() if naming.is_artifacts_key(key.cache_key)}
    excess: dict[EntryKey, str] = {}
    left = sum(min(entry.bytes, max_bytes) for entry in artifacts.values())
    for key, entry in sorted(artifacts.items(), key=lambda item: (item[1].last_used_time or "", item[0])):
        if key in held:
            continue
        if entry.bytes > max_bytes or left > max_node_bytes:
            excess[key] = CAUSE_SIZE
        elif entry.last_used_time and _age(snapshot, entry.last_used_time) > max_age:
            excess[key] = CAUSE_AGE
        else:
            continue
        left -= min(entry.bytes, max_bytes)
    return excess


def _age(snapshot: NodeSnapshot, moment: str) -> float:
    return (snapshot.now - units.parse_time(moment)).total_seconds()
