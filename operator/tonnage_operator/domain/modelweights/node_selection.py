"""Selects the desired nodes of a ``ModelWeights``."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tonnage_operator.api import names
from tonnage_operator.api.placement import NodeSelectorOperator, PrewarmMode, TaintEffect, TolerationOperator

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from tonnage_operator.api.placement import NodeSelectorRequirement, NodeSelectorTerm, PlacementSpec, Toleration
    from tonnage_operator.domain.installation import PrewarmSettings
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


def is_schedulable(placement: PlacementSpec, node: Node, prewarm: PrewarmSettings) -> bool:
    """Returns whether a load could run now: the node is ready, not cordoned, and all its taints are tolerated.

    Tolerations of taints that the administrator doesn't allow have no effect.
    """
    if node.unschedulable or not node.ready:
        return False
    if not node.taints:
        return True
    blocking_taints = [taint for taint in node.taints if taint.effect != TaintEffect.PREFER_NO_SCHEDULE.value]
    return all(
        prewarm.allows_taint(taint.key) and any(_tolerates(each, taint) for each in placement.tolerations or ())
        for taint in blocking_taints
    )


def desired_nodes(
    placement: PlacementSpec,
    matching: Iterable[Node],
    prewarm: PrewarmSettings,
    *,
    seed: str,
    warm: Collection[str],
    loading: Collection[str],
) -> tuple[Node, ...]:
    """Returns the nodes that should be warm, in loading order.

    Args:
        placement: The object's placement.
        matching: The nodes that it selects.
        prewarm: What the administrator allows.
        seed: Makes the order specific to the object, so that objects don't all start on the same nodes.
        warm: Names of warm nodes; with ``Count`` they come first, so that the selection is stable.
        loading: Names of loading nodes; with ``Count`` they come second.
    """
    if placement.prewarm is PrewarmMode.NONE:
        return ()
    fit = [node for node in matching if is_schedulable(placement, node, prewarm)]
    fit.sort(key=lambda node: _order(seed, node.name))
    if placement.prewarm is PrewarmMode.COUNT:
        fit.sort(key=lambda node: 0 if node.name in warm else 1 if node.name in loading else 2)
        fit = fit[: placement.count]
    return tuple(fit)


def _order(seed: str, node: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{node}".encode(), digest_size=8).digest()
