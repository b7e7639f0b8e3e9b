"""Access to a ``ModelWeights`` from pods of other namespaces: ``spec.access``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage_operator.api.base import LabelSelectorOperator
from tonnage_operator.api.modelweights import FromNamespaces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage_operator.api.base import LabelSelector
    from tonnage_operator.domain.observed.model_weights import ModelWeights


def needs_namespace_labels(weights: ModelWeights, namespace: str) -> bool:
    """Returns whether ``is_allowed`` depends on the labels of the pod's namespace."""
    allowed = weights.spec.access.allowed_namespaces
    return namespace != weights.namespace and allowed.from_ is FromNamespaces.SELECTOR


def is_allowed(weights: ModelWeights, namespace: str, labels: Mapping[str, str]) -> bool:
    """Returns whether pods in ``namespace``, which has ``labels``, may use the object."""
    allowed = weights.spec.access.allowed_namespaces
    if namespace == weights.namespace or allowed.from_ is FromNamespaces.ALL:
        return True
    if allowed.from_ is FromNamespaces.SAME or allowed.selector is None:
        return False
    return _selector_matches(allowed.selector, labels)


def _selector_matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Returns whether a selector matches. An empty selector matches everything, as elsewhere in Kubernetes."""
    if any(labels.get(key) != value for key, value in (selector.match_labels or {}).items()):
        return False
    for each in selector.match_expressions or ():
        value = labels.get(each.key)
        match each.operator:
            case LabelSelectorOperator.IN:
                matched = value in (each.values or ())
            case LabelSelectorOperator.NOT_IN:
                matched = value not in (each.values or ())
            case LabelSelectorOperator.EXISTS:
                matched = value is not None
            case LabelSelectorOperator.DOES_NOT_EXIST:
                matched = value is None
        if not matched:
            return False
    return True
