"""LimitRanges and ResourceQuotas of a namespace, and resources of loaders that they accept.

A LimitRange gives a default limit to each container without one. A loader's request is often higher, and a request
above its limit is invalid, so the API server would reject the pod. A quota on limits rejects containers without one. In
both cases a loader gets a limit of its own: at least its request, so it never gets less memory than it may write.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from tonnage.contract.sizes import human_bytes
from tonnage_operator.domain import units

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tonnage_operator.api.base import Body

_STORAGE: Final = "ephemeral-storage"
_RESOURCES: Final = ("cpu", "memory", _STORAGE)
_LOG_BYTES: Final = 64 << 20
"""Bytes of the node's disk for a loader's logs, where the namespace limits them."""
_REMEDIES: Final = {
    "memory": "raise its maximum, or set spec.cache.medium to Disk",
    _STORAGE: "raise its maximum, or set spec.cache.delivery to PersistentVolumeClaim",
}
"""What to do about a resource of which a loader can't have less."""


class ResourcesNotAllowed(Exception):
    """The namespace allows no resources with which a loader can work. The message names the rule and a remedy."""


@dataclass(frozen=True)
class NamespaceLimits:
    """What a namespace requires of each container, by resource, in base units. ``_RESOURCES`` are the resources."""

    default_limits: Mapping[str, Decimal] = field(default_factory=dict)
    """Limits that containers without one get."""
    minimums: Mapping[str, Decimal] = field(default_factory=dict)
    maximums: Mapping[str, tuple[Decimal, str]] = field(default_factory=dict)
    """Highest limits, each with the name of the LimitRange."""
    max_ratios: Mapping[str, Decimal] = field(default_factory=dict)
    """Highest quotients of limit and request."""
    required_limits: frozenset[str] = frozenset()
    """Resources for which a quota requires a limit."""


def parse_namespace_limits(limit_ranges: Iterable[Body], quotas: Iterable[Body]) -> NamespaceLimits:
    """Parses the LimitRanges and ResourceQuotas of one namespace. Values that are no quantities are ignored."""
    defaults: dict[str, Decimal] = {}
    minimums: dict[str, Decimal] = {}
    maximums: dict[str, tuple[Decimal, str]] = {}
    ratios: dict[str, Decimal] = {}
    for limit_range in limit_ranges:
        name = limit_range["metadata"]["name"]
        for item in (limit_range.get("spec") or {}).get("limits") or ():
            if item.get("type") != "Container":
                continue
            for resource, amount in _amounts(item.get("max")):
                maximums[resource] = min(maximums.get(resource, (amount, name)), (amount, name))
                # The API server uses the maximum as default limit if there is none.
                defaults.setdefault(resource, amount)
            defaults |= dict(_amounts(item.get("default")))
            for resource, amount in _amounts(item.get("min")):
                minimums[resource] = max(minimums.get(resource, amount), amount)
            for resource, amount in _amounts(item.get("maxLimitRequestRatio")):
                ratios[resource] = min(ratios.get(resource, amount), amount)
    hard = {name for quota in quotas for name in (quota.get("spec") or {}).get("hard") or {}}
    # The API server requires no limit of storage, even if a quota counts it.
    required = frozenset(resource for resource in ("cpu", "memory") if f"limits.{resource}" in hard)
    return NamespaceLimits(defaults, minimums, maximums, ratios, required)


def _amounts(values: Body | None) -> list[tuple[str, Decimal]]:
    found: list[tuple[str, Decimal]] = []
    for resource in _RESOURCES:
        if resource in (values or {}):
            try:
                found.append((resource, units.exact_quantity((values or {})[resource])))
            except ValueError:
                continue
    return found


def fit_resources(resources: Body, limits: NamespaceLimits, *, memory_floor: int = 0, storage_floor: int = 0) -> Body:
    """Returns a loader's requests and limits as the namespace accepts them.

    Less CPU than requested makes a load slower; less memory or storage makes it fail, so these are never lowered.

    Args:
        resources: The loader's own.
        limits: What the namespace requires.
        memory_floor: Bytes that it may need, which may be more than it requests: no limit is set below them.
        storage_floor: Bytes of an ``emptyDir`` volume on disk that it writes.

    Raises:
        ResourcesNotAllowed: The loader needs more memory or storage than the namespace allows for one container.
    """
    fitted: Body = {"requests": dict(resources.get("requests") or {}), "limits": dict(resources.get("limits") or {})}
    _fit(fitted, "cpu", limits, Decimal(0))
    _fit(fitted, "memory", limits, Decimal(memory_floor))
    _fit(fitted, _STORAGE, limits, Decimal(storage_floor + _LOG_BYTES))
    return {kind: amounts for kind, amounts in fitted.items() if amounts}


def _fit(resources: Body, resource: str, limits: NamespaceLimits, floor: Decimal) -> None:
    requests, own_limits = resources["requests"], resources["limits"]
    request = units.exact_quantity(requests.get(resource, "0"))
    if (minimum := limits.minimums.get(resource)) is not None and request < minimum:
        request = minimum
        requests[resource] = units.format_quantity(request)
    highest, rule = limits.maximums.get(resource, (None, ""))
    if highest is not None and max(request, floor) > highest:
        if resource in _REMEDIES:
            needed = human_bytes(int(max(request, floor)), "column")
            raise ResourcesNotAllowed(
                f"The loader needs {needed} of {resource}, and LimitRange {rule} allows "
                f"{human_bytes(int(highest), 'column')} for a container: {_REMEDIES[resource]}."
            )
        request = highest
        requests[resource] = units.format_quantity(request)
    own = units.exact_quantity(own_limits[resource]) if resource in own_limits else None
    if own is None and resource not in limits.default_limits and resource not in limits.required_limits:
        return
    limit = max(request, floor, limits.default_limits.get(resource, Decimal(0))) if own is None else max(request, own)
    limit = limit if highest is None else min(limit, highest)
    if limit != own:
        own_limits[resource] = units.format_quantity(limit)
    ratio = limits.max_ratios.get(resource)
    if ratio and limit > request * ratio:
        requests[resource] = units.format_quantity(limit / ratio)


def fit_job(job: Body, limits: NamespaceLimits, *, memory_floor: int) -> Body:
    """Returns a Job whose loader has resources that the namespace accepts; the same Job if there are none.

    The API server rejects the Job's pod then, and the object's status quotes it.
    """
    if limits == NamespaceLimits():
        return job
    fitted = copy.deepcopy(job)
    for container in fitted["spec"]["template"]["spec"]["containers"]:
        try:
            resources = fit_resources(container.get("resources") or {}, limits, memory_floor=memory_floor)
        except ResourcesNotAllowed:
            return job
        container["resources"] = resources
    return fitted
