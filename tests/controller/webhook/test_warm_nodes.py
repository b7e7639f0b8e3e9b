"""Which nodes a pod is steered to."""

from __future__ import annotations

from typing import Any

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.webhook.warm_nodes import WarmNodes


def _record(version: int, *entries: dict[str, Any], node: str = "n0") -> dict[str, Any]:
    return {
        "metadata": {
            "name": node,
            "uid": f"uid-{node}",
            "resourceVersion": str(version),
            "labels": {names.HOSTNAME_LABEL: f"host-{node}"},
        },
        "status": {"entries": list(entries)},
    }


def _entry(name: str = "r-1", state: str = "Ready", **more: Any) -> dict[str, Any]:
    return {"name": name, "medium": "Memory", "state": state, **more}


def test_a_node_is_warm_while_its_entry_is_ready() -> None:
    warmth = WarmNodes()
    warmth.store.put(_record(1, _entry(state="Loading")))
    assert warmth.hostnames("r-1", Medium.MEMORY) == ()
    warmth.store.put(_record(2, _entry()))
    warmth.store.put(_record(3, _entry(), node="n1"))
    assert warmth.hostnames("r-1", Medium.MEMORY) == ("host-n0", "host-n1")
    assert warmth.hostnames("r-1", Medium.DISK) == ()
    warmth.store.put(_record(4, _entry(state="Evicting")))
    warmth.store.remove("uid-n1")
    assert warmth.hostnames("r-1", Medium.MEMORY) == ()


def test_a_node_with_some_ranks_is_warm_for_pods_that_want_just_these() -> None:
    warmth = WarmNodes()
    warmth.store.put(_record(1, _entry(ranks="0-3")))
    warmth.store.put(_record(2, _entry(), node="n1"))
    assert warmth.hostnames("r-1", Medium.MEMORY, "0,1") == ("host-n0", "host-n1")
    assert warmth.hostnames("r-1", Medium.MEMORY, "3,4") == ("host-n1",)
    assert warmth.hostnames("r-1", Medium.MEMORY) == ("host-n1",)
