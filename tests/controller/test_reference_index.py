"""An entry that an object stopped referring to is evicted, also if its node was not reconciled meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from operator_support import objects
from tonnage_operator.api.modelweights import Medium, Retention
from tonnage_operator.api.nodecache import CacheEntry, EntryKey, EntryState, NodeCacheStatus
from tonnage_operator.controller.reference_index import MAX_RELEASED, ReferenceIndex
from tonnage_operator.domain.modelweights.revisions import parse_resolve_report
from tonnage_operator.domain.nodecache.reconcile import decide_node
from tonnage_operator.domain.nodecache.snapshot import NodeSnapshot
from tonnage_operator.domain.observed.node import parse_node

if TYPE_CHECKING:
    from tonnage_operator.domain.observed.model_weights import ModelWeights

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def using(version: str, retention: str = "WhileReferenced") -> ModelWeights:
    """Returns an object that uses a revision."""
    spec = {"cache": {"retention": retention}}
    seen = parse_resolve_report(
        objects.resolved_report(version), objects.modelweights(spec), now="2026-01-01T00:00:00Z"
    )
    status = {"resolved": seen.model_dump(mode="json", by_alias=True, exclude_none=True)}  # type: ignore[union-attr]
    return objects.modelweights(spec, status=status)


def key_of(weights: ModelWeights) -> EntryKey:
    (key,) = weights.references(objects.INSTALLATION)
    return key


def state_after(index: ReferenceIndex, weights: ModelWeights) -> EntryState:
    """Returns the state of an evictable entry of a node after its next reconcile."""
    key = key_of(weights)
    entry = CacheEntry(name=key.cache_key, medium=Medium.MEMORY, state=EntryState.READY, retention=Retention.EVICTABLE)
    snapshot = NodeSnapshot(
        now=NOW,
        installation=objects.INSTALLATION,
        node=parse_node(objects.node("n0")),
        uid="cache",
        status=NodeCacheStatus(bootID="boot-1", entries=(entry,)),
        references=list(index.for_keys([key], {})),
    )
    status = decide_node(snapshot).status
    assert status is not None
    (found,) = status.entries or ()
    return found.state


def test_an_evictable_entry_that_an_object_used_between_two_reconciles_is_evicted() -> None:
    index = ReferenceIndex(objects.INSTALLATION)
    index.put("a", using("1"))
    index.put("a", using("2"))
    assert state_after(index, using("1")) is EntryState.EVICTING
    assert state_after(index, using("2")) is EntryState.READY


def test_one_of_an_object_with_evictable_entries_is_kept() -> None:
    index = ReferenceIndex(objects.INSTALLATION)
    index.put("a", using("1", "Evictable"))
    index.put("a", using("2", "Evictable"))
    assert state_after(index, using("1")) is EntryState.READY


def test_the_last_object_that_used_an_entry_decides() -> None:
    index = ReferenceIndex(objects.INSTALLATION)
    index.put("a", using("1"))
    index.put("a", using("2"))
    index.put("b", using("1", "Evictable"))
    index.drop("b")
    assert state_after(index, using("1")) is EntryState.READY


def test_what_is_remembered_of_an_object_is_bounded() -> None:
    index = ReferenceIndex(objects.INSTALLATION)
    for number in range(2 * MAX_RELEASED):
        index.put("a", using(str(number)))
        (references,) = index.for_keys([key_of(using(str(number)))], {})
        assert len(references.released) <= MAX_RELEASED


_STEPS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["1", "2", "3", "gone"])), max_size=12)


@settings(deadline=None)
@given(_STEPS)
def test_after_any_changes_an_unused_entry_is_evicted_and_a_used_one_is_kept(steps: list[tuple[str, str]]) -> None:
    index = ReferenceIndex(objects.INSTALLATION)
    current: dict[str, str] = {}
    for uid, version in steps:
        if version == "gone":
            index.drop(uid)
            current.pop(uid, None)
        else:
            index.put(uid, using(version))
            current[uid] = version
    for version in ("1", "2", "3"):
        if version in current.values():
            assert state_after(index, using(version)) is EntryState.READY
    for uid in list(current):
        index.drop(uid)
    assert not index.for_keys([key_of(using(version)) for version in ("1", "2", "3")], {})
