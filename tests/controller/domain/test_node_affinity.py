"""Which nodes a pod that requires warm nodes may run on: known ones that are warm, and every one that joins later."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operator_support import objects
from operator_support.injection import annotated_pod, resolved_modelweights
from tonnage_operator.api import names
from tonnage_operator.api.placement import NodeSelector, PlacementSpec
from tonnage_operator.domain.admission.inject import inject
from tonnage_operator.domain.admission.injected_model import AdmissionDenied, resolve_injected_model
from tonnage_operator.domain.admission.node_affinity import (
    ColdNodes,
    find_cold_nodes,
    require_other_nodes,
)
from tonnage_operator.domain.admission.pod_request import parse_annotations
from tonnage_operator.domain.node_matching import matches
from tonnage_operator.domain.observed.node import Node, parse_node

Body = dict[str, Any]

KEY = "tonnage.dev/not-warm"
INSTALLATION = objects.INSTALLATION.model_copy(
    update={"gate": objects.INSTALLATION.gate.model_copy(update={"enabled": True, "taints": (KEY,)})}
)
GATED: Body = {"prewarm": "AllMatching", "scheduling": "Require", "gate": {}}


def _node(name: str, pool: str = "gpu", *taints: str, **more: Any) -> Node:
    listed = [{"key": key, "effect": "NoSchedule"} for key in taints]
    return parse_node(objects.node(name, labels={"pool": pool}, taints=listed, **more))


def _admits(pod: Body, node: Node) -> bool:
    """Returns whether the scheduler's rule for required node affinity lets the pod run on a node."""
    nodes = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = nodes.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    placement = PlacementSpec(node_affinity=NodeSelector.model_validate(required))
    return matches(placement, node, INSTALLATION.prewarm)


def _inject(placement: Body, nodes: list[Node], warm: set[str], **spec: Any) -> Body:
    weights = resolved_modelweights({"placement": placement})
    pod = annotated_pod(**spec)
    request = parse_annotations(pod["metadata"]["annotations"], namespace="serving")
    cold = find_cold_nodes(weights, warm, nodes, pod, INSTALLATION)
    model = resolve_injected_model(request.models[0], weights, tuple(sorted(warm)), cold=cold)
    return inject(pod, (model,), request, INSTALLATION)


@given(
    pools=st.lists(st.sampled_from(["gpu", "cpu"]), max_size=6),
    warm=st.sets(st.integers(0, 5)),
    held=st.sets(st.integers(0, 5)),
    own=st.sampled_from([None, [{"key": "zone", "operator": "DoesNotExist"}]]),
)
def test_a_pod_may_run_on_warm_nodes_and_new_ones_of_the_pool_and_on_no_cold_one(
    pools: list[str], warm: set[int], held: set[int], own: list[Body] | None
) -> None:
    nodes = [_node(f"n{i}", pool, *([KEY] if i in held else [])) for i, pool in enumerate(pools)]
    hosts = {f"n{i}" for i in warm if i < len(nodes) and pools[i] == "gpu"}
    spec: Body = {}
    if own:
        terms = {"nodeSelectorTerms": [{"matchExpressions": own}]}
        spec = {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}
    could_be_first = any(pool == "gpu" and i not in held for i, pool in enumerate(pools))
    try:
        pod = _inject({**GATED, "nodeSelector": {"pool": "gpu"}}, nodes, hosts, **spec)
    except AdmissionDenied:
        assert not hosts
        assert could_be_first
        return
    assert hosts or not could_be_first
    for i, node in enumerate(nodes):
        expected = pools[i] == "gpu" and (node.name in hosts or i in held)  # the taint keeps it from held ones
        assert _admits(pod, node) == expected
    assert _admits(pod, _node("template-node-of-the-pool"))
    assert not _admits(pod, _node("of-another-pool", "cpu"))
    if own:
        assert not _admits(pod, parse_node(objects.node("x", labels={"pool": "gpu", "zone": "a"})))


def test_a_pod_that_tolerates_the_startup_taint_may_not_run_on_a_node_that_only_the_taint_holds() -> None:
    nodes = [_node("warm"), _node("held", "gpu", KEY)]
    for toleration in ({"operator": "Exists"}, {"key": KEY, "operator": "Exists"}):
        assert not _admits(_inject(GATED, nodes, {"warm"}, tolerations=[toleration]), nodes[1])
    assert _admits(_inject(GATED, nodes, {"warm"}), nodes[1])


def test_nodes_that_can_not_load_now_are_excluded_and_keep_no_pod_from_waiting() -> None:
    nodes = [_node("cordoned", unschedulable=True), _node("away", ready=False), _node("full", "gpu", "example.com/a")]
    pod = _inject(GATED, nodes, set())
    assert not any(_admits(pod, node) for node in nodes)
    with pytest.raises(AdmissionDenied, match="No node is warm"):
        _inject(GATED, [*nodes, _node("cold")], set())


def test_each_term_of_the_placement_is_combined_with_each_of_the_pod() -> None:
    terms = [{"matchExpressions": [{"key": "a", "operator": "In", "values": [value]}]} for value in "12"]
    own = {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["x"]}]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": own}}
    placement = {**GATED, "nodeAffinity": {"nodeSelectorTerms": terms}}
    pod = _inject(placement, [], set(), affinity=affinity)
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    found = required["nodeSelectorTerms"]
    assert [sorted(term) for term in found] == [["matchExpressions", "matchFields"]] * 2


def test_with_very_many_cold_nodes_a_pod_names_the_warm_ones() -> None:
    weights = resolved_modelweights({"placement": GATED})
    spec: Body = {"containers": []}
    assert not require_other_nodes(spec, weights, ColdNodes(tuple(map(str, range(1001)))), INSTALLATION)
    assert spec == {"containers": []}
    nodes = [_node(f"n{i}") for i in range(1002)]
    pod = _inject(GATED, nodes, {"n0"})
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (expression,) = required["nodeSelectorTerms"][0]["matchExpressions"]
    assert expression == {"key": names.HOSTNAME_LABEL, "operator": "In", "values": ["n0"]}
