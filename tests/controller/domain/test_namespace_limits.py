"""Loaders in namespaces with LimitRanges and quotas: no request above a limit, no limit below what a loader writes."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operator_support import objects
from operator_support.injection import annotated_pod, find_loader, inject_pod, resolved_modelweights
from tonnage_operator.api import names
from tonnage_operator.domain import units
from tonnage_operator.domain.admission.inject import inject
from tonnage_operator.domain.admission.injected_model import AdmissionDenied, resolve_injected_model
from tonnage_operator.domain.admission.pod_request import parse_annotations
from tonnage_operator.domain.specs import jobs
from tonnage_operator.domain.specs.namespace_limits import (
    NamespaceLimits,
    ResourcesNotAllowed,
    fit_job,
    fit_resources,
    parse_namespace_limits,
)

BYTES = 2 * objects.GIB + 1000
NEEDED = BYTES + (512 << 20)


def _limit_range(**item: dict[str, str]) -> dict[str, Any]:
    return {"metadata": {"name": "rules"}, "spec": {"limits": [{"type": "Container", **item}]}}


def _quota(**hard: str) -> dict[str, Any]:
    return {"metadata": {"name": "q"}, "spec": {"hard": {name.replace("_", "."): each for name, each in hard.items()}}}


DEFAULTS = parse_namespace_limits([_limit_range(default={"cpu": "500m", "memory": "512Mi"})], [])


def _inject(
    limits: NamespaceLimits, annotations: dict[str, str] | None = None, spec: dict[str, Any] | None = None
) -> dict[str, Any]:
    pod = annotated_pod(annotations)
    request = parse_annotations(pod["metadata"]["annotations"], namespace="serving")
    model = resolve_injected_model(request.models[0], resolved_modelweights(spec), ("n",))
    return inject(pod, (model,), request, objects.INSTALLATION, limits)


def test_a_default_limit_below_the_request_is_replaced_by_a_limit_of_the_loaders_own() -> None:
    assert find_loader(_inject(DEFAULTS))["resources"] == {
        "requests": {"cpu": "1", "memory": str(NEEDED)},
        "limits": {"cpu": "1", "memory": str(NEEDED)},
    }


def test_without_rules_a_loader_has_no_limit() -> None:
    assert _inject(NamespaceLimits()) == inject_pod(annotated_pod(), warm=("n",))


def test_a_loader_that_requests_less_than_it_writes_gets_no_limit_below_it() -> None:
    pod = _inject(DEFAULTS, {names.MODEL: "llama", names.LOADER_MEMORY: "1Gi"})
    assert find_loader(pod)["resources"]["requests"]["memory"] == "1Gi"
    assert find_loader(pod)["resources"]["limits"]["memory"] == str(NEEDED)


def test_a_quota_on_limits_gets_limits() -> None:
    limits = parse_namespace_limits([], [_quota(limits_cpu="10", requests_memory="1Ti"), _quota(limits_memory="1Ti")])
    assert find_loader(_inject(limits))["resources"]["limits"] == {"cpu": "1", "memory": str(NEEDED)}
    assert "limits" not in find_loader(_inject(parse_namespace_limits([], [_quota(requests_cpu="1")])))["resources"]


@pytest.mark.parametrize(("delivery", "lowest"), [("EmptyDir", 2 << 30), ("HostPath", 1)])
def test_a_default_limit_of_storage_is_raised_to_what_a_loader_writes(delivery: str, lowest: int) -> None:
    """The kubelet evicts a pod that writes more to its volumes and logs than its limit."""
    limits = parse_namespace_limits([_limit_range(default={"ephemeral-storage": "1Mi"})], [])
    spec = {"cache": {"delivery": delivery, "medium": "Disk"}}
    found = find_loader(_inject(limits, spec=spec))["resources"]["limits"]["ephemeral-storage"]
    assert lowest <= units.exact_quantity(found) < lowest + (1 << 30)


def test_a_maximum_of_storage_below_the_bytes_is_denied_with_what_to_set() -> None:
    limits = parse_namespace_limits([_limit_range(max={"ephemeral-storage": "1Gi"})], [])
    with pytest.raises(AdmissionDenied, match=r"of ephemeral-storage, and LimitRange rules.*PersistentVolumeClaim"):
        _inject(limits, spec={"cache": {"delivery": "EmptyDir", "medium": "Disk"}})


def test_a_maximum_below_the_bytes_is_denied_with_its_name_and_what_to_set() -> None:
    limits = parse_namespace_limits([_limit_range(max={"memory": "1Gi"})], [])
    with pytest.raises(AdmissionDenied, match=r"needs 2.5Gi of memory, and LimitRange rules allows 1Gi.*Disk"):
        _inject(limits)


def test_a_maximum_of_cpu_makes_a_load_slower_but_not_impossible() -> None:
    limits = parse_namespace_limits([_limit_range(max={"cpu": "250m"}, min={"memory": "3Gi"})], [])
    found = find_loader(_inject(limits))["resources"]
    assert found["requests"] == {"cpu": "250m", "memory": str(3 << 30)}
    assert found["limits"]["cpu"] == "250m", "a maximum is also the default limit"


def test_a_ratio_of_limit_and_request_is_kept() -> None:
    item = {"default": {"cpu": "4"}, "maxLimitRequestRatio": {"cpu": "2"}}
    found = find_loader(_inject(parse_namespace_limits([_limit_range(**item)], [])))["resources"]
    assert (found["requests"]["cpu"], found["limits"]["cpu"]) == ("2", "4")


def test_jobs_get_the_same_limits_and_stay_as_they_are_where_none_fit() -> None:
    weights = resolved_modelweights()
    assert weights.status.resolved
    node = None
    for job in (
        jobs.build_resolve_job(weights, objects.INSTALLATION, round_="", attempt=1),
        jobs.build_load_job(weights, weights.status.resolved, objects.INSTALLATION, node=node, attempt=1),
    ):
        (fitted,) = fit_job(job, DEFAULTS, memory_floor=0)["spec"]["template"]["spec"]["containers"]
        for resource, request in fitted["resources"]["requests"].items():
            assert units.exact_quantity(fitted["resources"]["limits"][resource]) >= units.exact_quantity(request)
        too_low = parse_namespace_limits([_limit_range(max={"memory": "1Mi"})], [])
        assert fit_job(job, too_low, memory_floor=0) is job


def test_rules_of_pods_and_claims_and_values_that_are_no_quantities_are_ignored() -> None:
    strange = {"metadata": {"name": "x"}, "spec": {"limits": [{"type": "Pod", "max": {"memory": "1"}}, {}]}}
    wrong = _limit_range(default={"cpu": "many", "memory": "1Gi", "nvidia.com/gpu": "1"})
    assert parse_namespace_limits([strange, wrong, {"metadata": {"name": "y"}}], [{}]) == NamespaceLimits(
        default_limits={"memory": Decimal(1 << 30)}
    )


_AMOUNTS = st.integers(1, 64)


@given(
    request=_AMOUNTS,
    own=st.none() | _AMOUNTS,
    default=st.none() | _AMOUNTS,
    minimum=st.none() | st.integers(1, 8),
    maximum=st.none() | st.integers(8, 64),
    ratio=st.none() | st.integers(1, 4),
    floor=st.integers(0, 64),
    required=st.booleans(),
)
def test_any_rule_is_met_or_the_loader_is_denied(
    request: int, own: int | None, default: int | None, minimum: int | None, maximum: int | None, ratio: int | None,
    floor: int, required: bool,
) -> None:  # fmt: skip
    if own is not None and own < request:
        own = request
    if default is not None and maximum is not None:
        default = min(default, maximum)
    item = {
        name: {"memory": str(value)}
        for name, value in (("default", default), ("min", minimum), ("max", maximum), ("maxLimitRequestRatio", ratio))
        if value is not None
    }
    limits = parse_namespace_limits([_limit_range(**item)], [_quota(limits_memory="9")] if required else [])
    resources = {"requests": {"memory": str(request)}, "limits": {"memory": str(own)} if own is not None else {}}
    try:
        fitted = fit_resources(resources, limits, memory_floor=floor)
    except ResourcesNotAllowed:
        assert maximum is not None
        assert max(request, floor) > maximum
        return
    found = units.exact_quantity(fitted["requests"]["memory"])
    limit = fitted.get("limits", {}).get("memory")
    if limit is None:
        assert own is None
        assert not required
        assert default is None
        assert maximum is None
        return
    amount = units.exact_quantity(limit)
    assert found <= amount
    assert found >= (minimum or 0)
    assert maximum is None or amount <= maximum
    assert own is not None or amount >= floor
    assert ratio is None or amount <= found * ratio
