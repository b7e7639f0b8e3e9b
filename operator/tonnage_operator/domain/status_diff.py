"""Decides which status changes are written at once.

Counts and progress are written less often, because each write costs the API server and all watchers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage_operator.api.nodecache import EntryState

if TYPE_CHECKING:
    from tonnage_operator.api.nodecache import CacheEntry, MediumStatus, NodeCacheStatus
    from tonnage_operator.api.status import ModelWeightsStatus


def is_significant(before: ModelWeightsStatus, after: ModelWeightsStatus) -> bool:
    """Returns whether more than counts and progress changed: a condition, a revision, a failing node."""
    return _significant_fields(before) != _significant_fields(after)


def _significant_fields(status: ModelWeightsStatus) -> tuple[object, ...]:
    conditions = {(each.type, each.status, each.reason, each.observed_generation) for each in status.conditions or ()}
    failures = {(each.node, each.reason) for each in status.failures or ()}
    seen_revisions = (status.resolved, status.available, status.rollout)
    revisions = tuple(seen.revision if seen else "" for seen in seen_revisions)
    fixed = (status.observed_generation, status.medium, status.source, status.size, status.last_checked_time)
    return (conditions, failures, revisions, fixed)


def only_load_started(before: NodeCacheStatus, after: NodeCacheStatus) -> bool:
    """Returns whether the only change is that loads started. Writing that can wait, because short loads end first."""
    if (before.boot_id, _settled(before), before.conditions) != (after.boot_id, _settled(after), after.conditions):
        return False
    old = {each.entry_key: each for each in before.entries or ()}
    new = {each.entry_key: each for each in after.entries or ()}
    return old.keys() <= new.keys() and all(
        entry == old.get(key) or _load_started(old.get(key), entry) for key, entry in new.items()
    )


def _settled(status: NodeCacheStatus) -> list[MediumStatus]:
    """Returns the usage of the media without what is reserved for loads."""
    return [state.model_copy(update={"reserved_bytes": 0}) for state in status.media or ()]


def _load_started(before: CacheEntry | None, after: CacheEntry) -> bool:
    return after.state is EntryState.LOADING and (before is None or before.state is EntryState.PARTIAL)
