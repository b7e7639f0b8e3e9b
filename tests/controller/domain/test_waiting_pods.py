"""The event on a pod that waits for a warm node."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from operator_support import objects
from operator_support.injection import resolved_modelweights
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import NodeCacheStatus
from tonnage_operator.domain.gate.waiting_pods import describe_wait
from tonnage_operator.domain.nodecache.index import CacheIndex
from tonnage_operator.domain.observed.held_entries import HeldEntry
from tonnage_operator.domain.observed.node import Node, parse_node
from tonnage_operator.domain.observed.pod import Pod, parse_pod

INSTALLATION = objects.INSTALLATION.model_copy(
    update={"gate": objects.INSTALLATION.gate.model_copy(update={"enabled": True})}
)
HELD = HeldEntry(
    container=names.LOADER_CONTAINER, namespace="serving", name="llama", uid=objects.UID, revision="r-1", key="r-1"
)


def _pod(message: str = "0/1 nodes are available", **changes: Any) -> Pod:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    body = {
        "metadata": {"namespace": "serving", "name": "p", "uid": "pod-1"},
        "spec": {},
        "status": {"conditions": [condition] if message else []},
    }
    return replace(parse_pod(body), held_entries=(HELD,), **changes)


def _nodes(*gated: bool) -> list[Node]:
    taint = {"key": "tonnage.dev/not-warm", "effect": "NoSchedule"}
    return [parse_node(objects.node(f"n{i}", taints=[taint] if each else [])) for i, each in enumerate(gated)]


def _event(pod: Pod, nodes: list[Node], *warm: str, **placement: Any) -> str:
    weights = resolved_modelweights({"placement": placement})
    status = NodeCacheStatus.model_validate({"entries": [{"name": "r-1", "medium": "Memory", "state": "Ready"}]})
    index = CacheIndex(dict.fromkeys(warm, status))
    event = describe_wait(pod, {objects.UID: weights}, nodes, index, INSTALLATION)
    return event.message if event else ""


WAITS = "It waits for room, or for a node that is added."
REQUIRE = {"prewarm": "AllMatching", "scheduling": "Require"}


@pytest.mark.parametrize(
    ("nodes", "warm", "placement", "expected"),
    [
        ((), (), REQUIRE, f"No node is warm for serving/llama yet. {WAITS}"),
        (
            (False,),
            ("n0",),
            REQUIRE,
            f"The nodes that are warm for serving/llama don't take this pod. {WAITS}",
        ),
        (
            (True,) * 5,
            (),
            {"prewarm": "AllMatching", "gate": {}},
            "No node is warm for serving/llama yet. New nodes take it as soon as they are warm: n0, n1, n2 and 2 more.",
        ),
        ((True,), (), {"prewarm": "AllMatching"}, ""),
        ((False,), (), {"prewarm": "AllMatching", "gate": {}}, ""),
    ],
)
def test_the_event_names_what_the_pod_waits_for(
    nodes: tuple[bool, ...], warm: tuple[str, ...], placement: dict[str, Any], expected: str
) -> None:
    assert _event(_pod(), _nodes(*nodes), *warm, **placement) == expected


def test_pods_that_are_scheduled_or_deleted_or_wait_for_something_else_get_none() -> None:
    assert not _event(_pod(""), [], **REQUIRE)
    assert not _event(_pod(node="n0"), [], **REQUIRE)
    assert not _event(_pod(deleting=True), [], **REQUIRE)
    assert not _event(_pod(scheduling="Ignore"), [], **REQUIRE)
    assert _event(_pod(scheduling="Require"), [], prewarm="AllMatching")
    assert HELD.medium is Medium.MEMORY
