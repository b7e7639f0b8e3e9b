"""Namespaces with rules, on a real API server: limits, quotas, resources of whole pods, queues, other webhooks."""

from __future__ import annotations

import json
import urllib.error
from typing import TYPE_CHECKING, Any

import pytest

from operator_support.fake_kubelet import Termination
from operator_support.metrics import count
from operator_support.pods import CONTAINERS, create_pod, create_resolved_model, init_container_names
from support.waiting import eventually
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.domain import units

if TYPE_CHECKING:
    from operator_support.fake_kubelet import FakeLoaders
    from operator_support.harness import ControllerThread, OperatorHarness
    from operator_support.webhook_thread import WebhookThread

SMALL = {"cpu": "500m", "memory": "512Mi"}


def _add(harness: OperatorHarness, kind: str, plural: str, spec: dict[str, Any]) -> None:
    body = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "rules"}, "spec": spec}
    harness.plane.request("POST", f"/api/v1/namespaces/{harness.namespace}/{plural}", body)


def _add_limit_range(harness: OperatorHarness, **item: dict[str, str]) -> None:
    _add(harness, "LimitRange", "limitranges", {"limits": [{"type": "Container", **item}]})


def _add_quota(harness: OperatorHarness, hard: dict[str, str]) -> None:
    _add(harness, "ResourceQuota", "resourcequotas", {"hard": hard})
    path = f"/api/v1/namespaces/{harness.namespace}/resourcequotas/rules"
    eventually(lambda: (harness.plane.request("GET", path).get("status") or {}).get("hard"))


def _loader(pod: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(
        each for each in pod["spec"]["initContainers"] if each["name"] == names.LOADER_CONTAINER
    )
    return found


def _rejection(harness: OperatorHarness, annotations: dict[str, str] | None = None, **spec: Any) -> str:
    with pytest.raises(urllib.error.HTTPError) as caught:
        create_pod(harness, annotations, **spec)
    with caught.value as answer:
        message: str = json.loads(answer.read())["message"]
    return message


@pytest.fixture
def model(harness: OperatorHarness, webhook: WebhookThread) -> OperatorHarness:
    del webhook
    create_resolved_model(harness, {"loader": {"resources": {"requests": {"cpu": "1"}}}})
    return harness


def test_a_pod_is_admitted_where_a_limit_range_has_defaults_below_the_loaders_requests(model: OperatorHarness) -> None:
    _add_limit_range(model, default=SMALL, defaultRequest=SMALL)
    pod = create_pod(model)
    resources = _loader(pod)["resources"]
    for resource in ("cpu", "memory"):
        assert units.exact_quantity(resources["limits"][resource]) >= units.exact_quantity(
            resources["requests"][resource]
        )
    assert int(resources["limits"]["memory"]) > 2 << 30, "the bytes that it writes"
    assert pod["spec"]["containers"][0]["resources"]["limits"] == SMALL


def test_a_pod_is_admitted_where_a_quota_requires_limits(model: OperatorHarness) -> None:
    _add_quota(model, {"limits.cpu": "100", "limits.memory": "1Ti"})
    assert "must specify limits" in _rejection(model, {}), "the quota works"
    assert _loader(create_pod(model, containers=[{**CONTAINERS[0], "resources": {"limits": SMALL}}]))


def test_a_default_limit_of_storage_leaves_room_for_a_loaders_logs(model: OperatorHarness) -> None:
    _add_limit_range(model, default={"ephemeral-storage": "1Mi"})
    pod = create_pod(model)
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"ephemeral-storage": "1Mi"}
    limit = units.exact_quantity(_loader(pod)["resources"]["limits"]["ephemeral-storage"])
    assert limit >= 64 << 20


def test_a_pod_that_exceeds_a_maximum_is_denied_with_both_figures(model: OperatorHarness) -> None:
    _add_limit_range(model, max={"memory": "1Gi"})
    message = _rejection(model)
    assert "LimitRange rules allows 1Gi" in message
    assert "spec.cache.medium" in message


def test_a_pod_with_resources_of_its_own_is_admitted_and_gets_those_of_the_loader(model: OperatorHarness) -> None:
    total = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}}
    for form in ("Sidecar", "Init"):
        pod = create_pod(model, {names.MODEL: "llama", names.FORM: form}, resources=total)
        requested = units.exact_quantity(pod["spec"]["resources"]["requests"]["memory"])
        assert requested >= (1 << 30) + int(_loader(pod)["resources"]["requests"]["memory"])


def test_a_misspelled_annotation_is_denied_or_warned_of_even_without_a_model(
    model: OperatorHarness, webhook: WebhookThread
) -> None:
    assert "did you mean tonnage.dev/mount-path?" in _rejection(
        model, {names.MODEL: "llama", "tonnage.dev/mountpath": "/x"}
    )
    assert 'neither "true" nor "false"' in _rejection(model, {names.MODEL: "llama", names.INJECT: "no"})
    del webhook
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "typo", "annotations": {"tonnage.dev/modle": "llama"}},
        "spec": {"containers": CONTAINERS},
    }
    done = model.plane.kubectl("create", "-n", model.namespace, "-f", "-", stdin=json.dumps(body))
    assert "did you mean tonnage.dev/model" in done.stderr


def test_ranks_that_the_model_does_not_have_are_denied(model: OperatorHarness) -> None:
    assert "has no ranks" in _rejection(model, {names.MODEL: "llama", names.RANKS: "0-3"})


def test_mounts_in_the_way_are_denied_before_the_runtime_fails(model: OperatorHarness) -> None:
    mount = {"name": "config", "mountPath": "/models", "readOnly": True}
    message = _rejection(
        model,
        containers=[{**CONTAINERS[0], "volumeMounts": [mount]}],
        volumes=[{"name": "config", "emptyDir": {}}],
    )
    assert "mounts volume config read-only at /models" in message


def test_pods_of_jobs_never_reach_the_webhook(model: OperatorHarness, webhook: WebhookThread) -> None:
    before = count(webhook.app.metrics.admissions)
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "load-",
            "labels": {names.ROLE: names.ROLE_LOAD},
            "annotations": {names.CACHE_KEY: "r-1"},
        },
        "spec": {"containers": CONTAINERS},
    }
    model.plane.request("POST", f"/api/v1/namespaces/{model.namespace}/pods", body)
    assert count(webhook.app.metrics.admissions) == before
    assert names.LOADER_CONTAINER in init_container_names(create_pod(model))
    assert count(webhook.app.metrics.admissions) > before


def test_jobs_run_in_a_namespace_with_default_limits_and_a_quota(
    harness: OperatorHarness, controller: ControllerThread, fake_loaders: FakeLoaders
) -> None:
    del controller, fake_loaders
    _add_limit_range(harness, default={"cpu": "500m", "memory": "64Mi"})
    _add_quota(harness, {"limits.cpu": "100", "limits.memory": "1Ti"})
    harness.add_nodes("a")
    harness.create({"loader": {"resources": {"requests": {"cpu": "1", "memory": "512Mi"}}}})
    harness.wait_for_condition("Warm")


def test_a_job_whose_pod_is_rejected_quotes_the_api_server_and_names_the_field(
    harness: OperatorHarness, controller: ControllerThread, fake_loaders: FakeLoaders
) -> None:
    del controller, fake_loaders
    harness.plane.kubectl("label", "namespace", harness.namespace, "pod-security.kubernetes.io/enforce=baseline")
    harness.add_nodes("a")
    harness.create()
    harness.wait_for_condition("Warm", "False", "PodNotCreated", timeout=40)
    message = next(each["message"] for each in harness.status()["conditions"] if each["type"] == "Warm")
    assert "violates PodSecurity" in message
    assert "hostPath" in message
    assert "spec.cache.delivery" in message


def test_a_job_that_a_queue_suspends_is_reported_and_continues(
    harness: OperatorHarness, controller: ControllerThread, fake_loaders: FakeLoaders
) -> None:
    del controller
    fake_loaders.block_resolves = True
    harness.add_nodes("a")
    harness.create()
    (job,) = eventually(lambda: harness.jobs("resolve"))
    path = f"/apis/batch/v1/namespaces/{harness.namespace}/jobs/{job['metadata']['name']}"
    harness.plane.request("PATCH", path, {"spec": {"suspend": True}}, content_type="application/merge-patch+json")
    harness.wait_for_condition("Resolved", "False", "JobSuspended")
    fake_loaders.block_resolves = False
    harness.plane.request("PATCH", path, {"spec": {"suspend": False}}, content_type="application/merge-patch+json")
    harness.wait_for_condition("Resolved", "True")


def test_a_failing_loader_in_a_pod_reaches_its_object(
    harness: OperatorHarness, controller: ControllerThread, webhook: WebhookThread, fake_loaders: FakeLoaders
) -> None:
    del controller, webhook
    report = contract.Report(outcome=contract.Outcome.FAILED, reason="ChecksumMismatch")
    fake_loaders.injected_failure = Termination(report, exit_code=24)
    (node,) = harness.add_nodes("a")
    harness.create({"placement": {"prewarm": "None"}})
    harness.wait_for_condition("Ready", "True", "LoadedOnDemand")
    name = create_pod(harness, nodeName=node)["metadata"]["name"]
    harness.wait_for_condition("Degraded", "True", "PodLoadFailed")
    harness.wait_for_condition("Ready", "False", "ChecksumMismatch")
    (failure,) = harness.status()["failures"]
    assert failure["pod"] == f"{harness.namespace}/{name}"
    assert failure["node"] == node
    assert eventually(lambda: harness.event_reasons().count("PodLoadFailed")) == 1
