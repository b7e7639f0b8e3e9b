"""Whether a namespace's pods may use an object of another one: ``spec.access``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage_operator.api.base import SelectorOperator
from tonnage_operator.api.modelweights import AccessFrom

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage_operator.api.base import LabelSelector
    from tonnage_operator.domain.weights import Weights


def needs_labels(weights: Weights, namespace: str) -> bool:
    """Returns whether the answer depends on the labels of the pod's namespace."""
    allowed = weights.spec.access.allowed_namespaces
    return namespace != weights.namespace and allowed.from_ is AccessFrom.SELECTOR


def may_use(weights: Weights, namespace: str, labels: Mapping[str, str]) -> bool:
    """Returns whether pods of ``namespace``, which has ``labels``, may use the object."""
    allowed = weights.spec.access.allowed_namespaces
    if namespace == weights.namespace or allowed.from_ is AccessFrom.ALL:
        return True
    if allowed.from_ is AccessFrom.SAME or allowed.selector is None:
        return False
    return selects(allowed.selector, labels)


def selects(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Returns whether a selector matches; an empty one matches everything, as in all of Kubernetes."""
    if any(labels.get(key) != value for key, value in (selector.match_labels or {}).items()):
        return False
    for each in selector.match_expressions or ():
        value = labels.get(each.key)
        match each.operator:
            case SelectorOperator.IN:
                holds = value in (each.values or ())
            case SelectorOperator.NOT_IN:
                holds = value not in (each.values or ())
            case SelectorOperator.EXISTS:
                holds = value is not None
            case SelectorOperator.DOES_NOT_EXIST:
                holds = value is None
        if not holds:
            return False
    return True
