"""Finds why a pod can't start before its weights are loaded (``tonnage.dev/wait: Streaming``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import LoaderForm
from tonnage_operator.domain.admission.container_order import redirects_network_later

if TYPE_CHECKING:
    from tonnage_operator.api.base import Body
    from tonnage_operator.domain.admission.pod_request import PodRequest
    from tonnage_operator.domain.observed.model_weights import ModelWeights

_REMOVE: Final = f"or remove the annotation {names.WAIT}."


def find_streaming_problem(spec: Body, weights: ModelWeights, request: PodRequest) -> str:
    """Returns why the pod can't start before the weights are loaded; empty if it can.

    Args:
        spec: The pod's spec, before the injection.
        weights: The model.
        request: The pod's annotations.
    """
    if request.form is LoaderForm.INIT:
        return (
            f"{names.FORM}: Init ends the loader before the other containers start, so they can't start before their "
            f"weights are loaded: remove it, {_REMOVE}"
        )
    if weights.spec.verify_on_hit:
        return (
            f"ModelWeights {weights.ref} has verifyOnHit, which verifies weights with the source before anyone reads "
            f"them: turn it off, {_REMOVE}"
        )
    if redirects_network_later(spec):
        return (
            "The pod's service mesh redirects its network after the loader has started, to a proxy that is not there "
            f"yet: enable native sidecars in the mesh, {_REMOVE}"
        )
    return ""
