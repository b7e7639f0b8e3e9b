from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import CacheEntry, EntryState, NodeCacheStatus
from tonnage_operator.domain.nodecache.index import CacheIndex
from tonnage_operator.domain.status_diff import only_load_started

ENTRIES = st.builds(
    CacheEntry,
    name=st.sampled_from(["r-1", "r-2", "r-3"]),
    medium=st.sampled_from(list(Medium)),
    state=st.sampled_from(list(EntryState)),
    models=st.lists(st.sampled_from(["a/x", "a/y", "b/x"]), unique=True).map(tuple),
)
RECORDS = st.lists(ENTRIES, unique_by=lambda entry: (entry.name, entry.medium)).map(
    lambda entries: NodeCacheStatus(entries=tuple(entries))
)
STEPS = st.lists(st.tuples(st.sampled_from(["n0", "n1"]), st.none() | RECORDS))


@given(STEPS)
def test_lookups_match_a_full_scan_after_any_changes(steps: list[tuple[str, NodeCacheStatus | None]]) -> None:
    caches, plain = CacheIndex(), dict[str, NodeCacheStatus]()
    for node, record in steps:
        if record is None:
            caches.drop(node)
            plain.pop(node, None)
        else:
            caches.put(node, record)
            plain[node] = record
    for name in ("r-1", "r-2", "r-3"):
        for medium in Medium:
            there = {
                node: entry
                for node, record in plain.items()
                for entry in record.entries or ()
                if (entry.name, entry.medium) == (name, medium)
            }
            assert dict(caches.nodes_with(name, medium)) == there
    for ref in ("a/x", "a/y", "b/x"):
        naming = {node for node, record in plain.items() for entry in record.entries or () if ref in entry.models}
        assert set(caches.nodes_referencing(ref)) == naming


def _record(*states: EntryState) -> NodeCacheStatus:
    return NodeCacheStatus(
        entries=tuple(
            CacheEntry(name=f"r-{number}", medium=Medium.DISK, state=state) for number, state in enumerate(states)
        )
    )


def test_a_started_load_is_distinguished_from_other_changes() -> None:
    ready, loading, partial = EntryState.READY, EntryState.LOADING, EntryState.PARTIAL
    assert only_load_started(_record(ready), _record(ready, loading))
    assert only_load_started(_record(ready, partial), _record(ready, loading))
    assert not only_load_started(_record(loading), _record(ready))
    assert not only_load_started(_record(ready, ready), _record(ready))
    assert not only_load_started(_record(ready), _record(loading))
