"""The record of a node can always be written: it is cut to what etcd takes, which a condition names."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from operator_support import objects
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import MAX_RECORDED_ENTRIES, CacheEntry, EntryState, NodeCacheStatus
from tonnage_operator.domain.nodecache.reconcile import decide_node
from tonnage_operator.domain.nodecache.record_limits import MAX_BYTES, MAX_RECORD_BYTES, cut_entries
from tonnage_operator.domain.nodecache.snapshot import NodeSnapshot
from tonnage_operator.domain.observed.node import parse_node


def _entry(index: int, **fields: Any) -> CacheEntry:
    plain = {"name": f"r-{index:012x}", "medium": Medium.MEMORY, "state": EntryState.READY, "bytes": 1}
    return CacheEntry.model_validate({**plain, **fields})


ENTRIES = st.lists(
    st.builds(
        CacheEntry,
        name=st.text("abcdef0123456789", min_size=1, max_size=63),
        medium=st.sampled_from(Medium),
        state=st.sampled_from(EntryState),
        bytes=st.integers(-(2**70), 2**70),
        ranks=st.sampled_from([None, "0-3", "0," * 5000]),
        models=st.lists(st.text("abc/", min_size=3, max_size=30), max_size=5).map(tuple),
        verified=st.sampled_from([None, "crc32", "x" * 5000]),
        revision=st.sampled_from([None, "r-1", "x" * 5000]),
        verified_by=st.sampled_from([None, "x" * 256]),
    ),
    max_size=20,
    unique_by=lambda entry: (entry.name, entry.medium),
)


@settings(max_examples=50)
@given(entries=ENTRIES)
def test_any_entries_become_a_record_within_the_schema(entries: list[CacheEntry]) -> None:
    kept, omitted = cut_entries(entries)
    assert (len(kept), omitted) == (len(entries), 0)
    assert {entry.entry_key for entry in kept} == {entry.entry_key for entry in entries}
    for entry in kept:
        assert 0 <= entry.bytes <= MAX_BYTES
        assert max(len(entry.ranks or ""), len(entry.verified or ""), len(entry.revision or "")) <= 2048


def test_more_entries_than_a_record_holds_are_left_out_those_without_objects_first() -> None:
    needed = [_entry(index, models=("serving/llama",)) for index in range(900)]
    other = [_entry(10_000 + index) for index in range(600)]
    kept, omitted = cut_entries([*other, *needed])
    assert (len(kept), omitted) == (MAX_RECORDED_ENTRIES, 500)
    assert {entry.name for entry in needed} <= {entry.name for entry in kept}


def test_the_longest_entries_fit_into_etcd() -> None:
    refs = tuple(f"{'n' * 63}/{'m' * 250}{index:03}" for index in range(1000))
    kept, _ = cut_entries(
        _entry(index, name=f"{'n' * 63}/r-{index:012x}", models=refs, ranks="0," * 1000, revision="r" * 64)
        for index in range(1500)
    )
    written = json.dumps([entry.model_dump(mode="json", by_alias=True, exclude_none=True) for entry in kept])
    assert len(written) <= 1.2 * MAX_RECORD_BYTES
    assert all(entry.models for entry in kept)


def test_a_cut_record_has_a_condition_and_a_whole_one_has_none() -> None:
    def conditions(count: int) -> dict[str, str]:
        entries = tuple(_entry(index) for index in range(count))
        node = parse_node(objects.node("n0", ready=False))
        status = NodeCacheStatus(bootID="boot-1").model_copy(update={"entries": entries})
        now = datetime(2026, 1, 1, tzinfo=UTC)
        decision = decide_node(
            NodeSnapshot(now=now, installation=objects.INSTALLATION, node=node, uid="cache", status=status)
        )
        assert decision.status
        return {each.type: each.message for each in decision.status.conditions or ()}

    assert "RecordTruncated" not in conditions(1000)
    assert conditions(1001)["RecordTruncated"].startswith("1 entries don't fit")
