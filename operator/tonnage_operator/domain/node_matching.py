"""Which nodes a ``ModelWeights`` selects, and on which of them a load could run now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage_operator.api import names
from tonnage_operator.api.placement import NodeSelectorOperator, TaintEffect, TolerationOperator

if TYPE_CHECKING:
    from tonnage_operator.api.placement import NodeSelectorRequirement, NodeSelectorTerm, PlacementSpec, Toleration
    from tonnage_operator.domain.installation import Installation, PrewarmSettings
    from tonnage_operator.domain.observed.node import Node, Taint


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect is not None and toleration.effect.value != taint.effect:
        return False
    if toleration.key is None:
        return toleration.operator is TolerationOperator.EXISTS
    if toleration.key != taint.key:
        return False
    return toleration.operator is TolerationOperator.EXISTS or (toleration.value or "") == taint.value


def _holds(requirement: NodeSelectorRequirement, value: str | None) -> bool:
    values = requirement.values or ()
    match requirement.operator:
        case NodeSelectorOperator.IN:
            return value in values
        case NodeSelectorOperator.NOT_IN:
            return value not in values
        case NodeSelectorOperator.EXISTS:
            return value is not None
        case NodeSelectorOperator.DOES_NOT_EXIST:
            return value is None
        case NodeSelectorOperator.GT | NodeSelectorOperator.LT:
            try:
                actual, bound = int(value or ""), int(values[0])
            except (ValueError, IndexError):
                return False
            return actual > bound if requirement.operator is NodeSelectorOperator.GT else actual < bound


def _matches_term(term: NodeSelectorTerm, node: Node) -> bool:
    if not term.match_expressions and not term.match_fields:
        return False  # as in the scheduler: an empty term matches no node
    return all(_holds(each, node.labels.get(each.key)) for each in term.match_expressions or ()) and all(
        _holds(each, node.name if each.key == "metadata.name" else None) for each in term.match_fields or ()
    )


def matches(placement: PlacementSpec, node: Node, prewarm: PrewarmSettings) -> bool:
    """Returns whether placement and administrator select the node, whatever its state. Loaders run only on Linux."""
    if node.labels.get(names.OS_LABEL, "linux") != "linux":
        return False
    for selector in (placement.node_selector or {}, prewarm.node_selector):
        if any(node.labels.get(key) != value for key, value in selector.items()):
            return False
    terms = placement.node_affinity.node_selector_terms if placement.node_affinity else None
    return terms is None or any(_matches_term(term, node) for term in terms)


def blocking_taints(placement: PlacementSpec, node: Node, installation: Installation) -> tuple[Taint, ...]:
    """Returns the taints of a node that keep load Jobs from it.

    Tolerations of taints that the administrator doesn't allow have no effect. The startup taints that wait for the
    object are always tolerated.
    """
    if not node.taints:
        return ()
    prewarm, startup_taints = installation.prewarm, installation.gate.taints_of(placement.gate)
    return tuple(
        taint
        for taint in node.taints
        if taint.effect != TaintEffect.PREFER_NO_SCHEDULE.value
        and taint.key not in startup_taints
        and not (
            prewarm.allows_taint(taint.key) and any(_tolerates(each, taint) for each in placement.tolerations or ())
        )
    )


def is_schedulable(placement: PlacementSpec, node: Node, installation: Installation) -> bool:
    """Returns whether a load could run now: the node is ready, not cordoned, and all its taints are tolerated."""
    return not node.unschedulable and node.ready and not blocking_taints(placement, node, installation)
