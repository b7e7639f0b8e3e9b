"""What a wipe reports as left, and what it waits for."""

from __future__ import annotations

from typing import Any

from tonnage_operator.controller.uninstall import leftovers


def _cache(name: str, *entries: dict[str, Any], ready: bool = True) -> dict[str, Any]:
    condition = {
        "type": "Ready",
        "status": "True" if ready else "False",
        "reason": "x",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    return {"metadata": {"name": name}, "status": {"conditions": [condition], "entries": list(entries)}}


ENTRY = {"name": "r-1", "medium": "Memory", "state": "Ready", "bytes": 2 << 30}


def test_nothing_left_reports_nothing() -> None:
    assert not leftovers([], [{"metadata": {"name": "new"}}, _cache("a")])


def test_objects_and_entries_are_waited_for() -> None:
    found = leftovers([{"metadata": {"namespace": "n", "name": "m"}}], [_cache("a", ENTRY)])
    assert [each.text for each in found] == [
        "ModelWeights n/m is being deleted",
        "Memory entry r-1 (2Gi) on a is Ready; pods that use it keep it",
    ]
    assert all(each.blocking for each in found)


def test_an_unreachable_node_is_reported_and_not_waited_for() -> None:
    (found,) = leftovers([], [_cache("a", ENTRY, ready=False)])
    assert found.text == "Memory entry r-1 (2Gi) on a is unreachable: node not ready"
    assert not found.blocking
