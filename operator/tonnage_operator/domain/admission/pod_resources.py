"""Resources of the pod as a whole (``spec.resources`` of a pod, since Kubernetes 1.34), which include the loaders'."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage_operator.domain import units

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage_operator.api.base import Body


def add_to_pod_resources(spec: Body, loaders: Iterable[Body]) -> None:
    """Adds the loaders' requests to the pod's own requests and limits, where the pod has them.

    Otherwise the API server would reject the pod, because its containers request more than the pod, or the memory that
    a loader writes would count against a limit that was chosen without it.
    """
    total = spec.get("resources")
    if not total:
        return
    for loader in loaders:
        own = loader["resources"]
        for kind in ("requests", "limits"):
            amounts = dict(total.get(kind) or {})
            for name, amount in amounts.items():
                added = (own.get(kind) or {}).get(name) or own["requests"].get(name)
                if added:
                    amounts[name] = units.add_quantities(amount, added)
            if amounts:
                total = {**total, kind: amounts}
    spec["resources"] = total
