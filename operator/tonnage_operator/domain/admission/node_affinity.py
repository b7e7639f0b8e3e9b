"""The node affinity of pods: which nodes they prefer, and which they may not run on.

``Require`` is expressed by the nodes that are cold, not by those that are warm. A pod that may run on named nodes only
can't run on a node that is added later, so an autoscaler would not add one, and the pod would wait for room forever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tonnage_operator.api import names
from tonnage_operator.api.placement import TaintEffect
from tonnage_operator.domain.node_matching import is_schedulable, matches

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from tonnage_operator.api.base import Body
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.observed.model_weights import ModelWeights
    from tonnage_operator.domain.observed.node import Node

PREFERENCE: Final = 80
"""Weight of the preferred node affinity for warm nodes; Kubernetes allows 1 to 100."""
MAX_PREFERRED_NODES: Final = 256
"""Maximum number of warm nodes in a preferred node affinity. It limits the size of pods; all warm nodes are equally
good."""
MAX_EXCLUDED_NODES: Final = 1000
"""Maximum number of cold nodes in a required node affinity, in all its terms together."""


@dataclass(frozen=True)
class ColdNodes:
    """The nodes that match an object's placement and don't have its entry."""

    excluded: tuple[str, ...] = ()
    """Host names of those on which nothing but the affinity prevents that a pod starts there."""
    may_become_warm: bool = False
    """A load could run on one of these now, so one of them may become the first warm node."""


def find_cold_nodes(
    weights: ModelWeights, warm: Collection[str], nodes: Iterable[Node], pod: Body, installation: Installation
) -> ColdNodes:
    """Returns the nodes on which a pod that requires warm nodes may not start.

    A node with a startup taint that waits for the object is not among them: the taint keeps the pod from it until it is
    warm, and the pod may then run there.

    Args:
        weights: The object.
        warm: Host names of warm nodes.
        nodes: All nodes.
        pod: The pod, whose tolerations count.
        installation: The startup taints, and what the administrator allows.
    """
    placement, startup_taints = weights.spec.placement, installation.gate.taints_of(weights.spec.placement.gate)
    tolerated = pod["spec"].get("tolerations") or ()
    excluded, may_become_warm = [], False
    for node in nodes:
        if node.hostname in warm or not matches(placement, node, installation.prewarm):
            continue
        if any(_keeps_out(node, key, tolerated) for key in startup_taints):
            continue
        excluded.append(node.hostname)
        may_become_warm = may_become_warm or is_schedulable(placement, node, installation)
    return ColdNodes(tuple(sorted(excluded)), may_become_warm)


def _keeps_out(node: Node, key: str, tolerations: Sequence[Body]) -> bool:
    has_taint = any(taint.key == key and taint.effect != TaintEffect.PREFER_NO_SCHEDULE.value for taint in node.taints)
    return has_taint and not any(each.get("key") in {None, "", key} for each in tolerations)


def prefer_nodes(spec: Body, warm: Sequence[str]) -> None:
    """Makes a pod prefer nodes by their host names."""
    hosts = {"key": names.HOSTNAME_LABEL, "operator": "In", "values": list(warm[:MAX_PREFERRED_NODES])}
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    preferred = affinity.setdefault("preferredDuringSchedulingIgnoredDuringExecution", [])
    preferred.append({"weight": PREFERENCE, "preference": {"matchExpressions": [hosts]}})


def require_named_nodes(spec: Body, warm: Sequence[str]) -> None:
    """Lets a pod run on nodes with these host names only."""
    _require(spec, [{"matchExpressions": [{"key": names.HOSTNAME_LABEL, "operator": "In", "values": list(warm)}]}])


def require_other_nodes(spec: Body, weights: ModelWeights, cold: ColdNodes, installation: Installation) -> bool:
    """Keeps a pod from nodes that are cold, and from those that the object doesn't select.

    Returns:
        Whether that can be expressed; if not, the pod is unchanged.
    """
    exclusion: list[Body] = []
    if cold.excluded:
        exclusion = [{"key": names.HOSTNAME_LABEL, "operator": "NotIn", "values": list(cold.excluded)}]
    placement = weights.spec.placement
    selected = {**(placement.node_selector or {}), **installation.prewarm.node_selector}
    common = [{"key": key, "operator": "In", "values": [value]} for key, value in sorted(selected.items())] + exclusion
    terms: list[Body] = [{}]
    if placement.node_affinity and placement.node_affinity.node_selector_terms is not None:
        terms = [
            each.model_dump(mode="json", by_alias=True, exclude_none=True)
            for each in placement.node_affinity.node_selector_terms
            if each.match_expressions or each.match_fields
        ]
    own = _required_terms(spec)
    if not terms or len(cold.excluded) * len(terms) * max(1, len(own)) > MAX_EXCLUDED_NODES:
        return False
    _require(spec, [_both(term, {"matchExpressions": common}) for term in terms])
    return True


def _required_terms(spec: Body) -> list[Body]:
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    found: list[Body] = required.get("nodeSelectorTerms") or []
    return found


def _require(spec: Body, alternatives: Sequence[Body]) -> None:
    """Adds a requirement to the pod's own. Terms are alternatives (OR), so each is combined with each."""
    combined = [_both(own, added) for own in _required_terms(spec) or [{}] for added in alternatives]
    if all(not term for term in combined):
        return
    affinity = spec["affinity"] = dict(spec.get("affinity") or {})
    nodes = affinity["nodeAffinity"] = dict(affinity.get("nodeAffinity") or {})
    nodes["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": combined}


def _both(first: Body, second: Body) -> Body:
    """Returns the term that requires what both terms require."""
    merged = {
        member: [*(first.get(member) or ()), *(second.get(member) or ())]
        for member in ("matchExpressions", "matchFields")
    }
    return {member: requirements for member, requirements in merged.items() if requirements}
