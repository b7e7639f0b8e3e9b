"""The index of warm nodes, which pods prefer."""

from __future__ import annotations

from typing import Any

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.webhook.warm_nodes import WarmNodes


def _node_cache(version: int, *entries: dict[str, Any], node: str = "n0") -> dict[str, Any]:
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
    warm_nodes = WarmNodes()
    warm_nodes.store.put(_node_cache(1, _entry(state="Loading")))
    assert warm_nodes.hostnames("r-1", Medium.MEMORY) == ()
    warm_nodes.store.put(_node_cache(2, _entry()))
    warm_nodes.store.put(_node_cache(3, _entry(), node="n1"))
    assert warm_nodes.hostnames("r-1", Medium.MEMORY) == ("host-n0", "host-n1")
    assert warm_nodes.hostnames("r-1", Medium.DISK) == ()
    warm_nodes.store.put(_node_cache(4, _entry(state="Evicting")))
    warm_nodes.store.remove("uid-n1")
    assert warm_nodes.hostnames("r-1", Medium.MEMORY) == ()


def test_a_node_with_some_ranks_is_warm_for_pods_that_request_only_these() -> None:
    warm_nodes = WarmNodes()
    warm_nodes.store.put(_node_cache(1, _entry(ranks="0-3")))
    warm_nodes.store.put(_node_cache(2, _entry(), node="n1"))
    assert warm_nodes.hostnames("r-1", Medium.MEMORY, "0,1") == ("host-n0", "host-n1")
    assert warm_nodes.hostnames("r-1", Medium.MEMORY, "3,4") == ("host-n1",)
    assert warm_nodes.hostnames("r-1", Medium.MEMORY) == ("host-n1",)
