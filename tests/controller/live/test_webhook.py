"""The webhook on a real API server: pods are injected, denied, or left unchanged."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from operator_support.harness import OperatorHarness
from operator_support.injection import own_containers
from operator_support.metrics import count
from operator_support.pods import CONTAINERS, create_pod, create_resolved_model, init_container_names, pod_template
from support.waiting import eventually
from tonnage_operator.api import names

if TYPE_CHECKING:
    from operator_support.control_plane import ControlPlane
    from operator_support.webhook_thread import WebhookThread


@pytest.fixture
def model(harness: OperatorHarness, webhook: WebhookThread) -> OperatorHarness:
    """A harness with a resolved model."""
    del webhook
    create_resolved_model(harness)
    return harness


def rejection_message(harness: OperatorHarness, annotations: dict[str, str] | None = None, **spec: Any) -> str:
    with pytest.raises(urllib.error.HTTPError) as caught:
        create_pod(harness, annotations, **spec)
    with caught.value as answer:
        message: str = json.loads(answer.read())["message"]
    return message


def test_an_annotated_pod_is_injected_and_valid(model: OperatorHarness) -> None:
    pod = create_pod(model)
    assert init_container_names(pod) == [names.LOADER_CONTAINER]
    assert pod["metadata"]["annotations"][names.REVISION].startswith("llama=r-")


def test_kubectl_describes_an_injected_pod_in_lines_that_fit(model: OperatorHarness) -> None:
    pod = create_pod(model)
    text = model.plane.kubectl("describe", "pod", "-n", model.namespace, pod["metadata"]["name"]).stdout
    assert '"bucket":' in text
    assert "BEGIN CERTIFICATE" not in text
    assert max(map(len, text.splitlines())) <= 180


def test_the_loader_does_not_get_the_token_that_the_pod_has(model: OperatorHarness) -> None:
    pod = create_pod(model, automountServiceAccountToken=True)
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    loader = pod["spec"]["initContainers"][0]
    (server,) = own_containers(pod)
    (own,) = [each["name"] for each in server["volumeMounts"] if each["mountPath"] == folder]
    (shadow,) = [each["name"] for each in loader["volumeMounts"] if each["mountPath"] == folder]
    assert shadow == "tonnage-run"
    assert own not in {each["name"] for each in loader["volumeMounts"]}


def test_an_injected_pod_is_not_injected_again(model: OperatorHarness) -> None:
    """As when another webhook changes it and ours is called again, or when the stored pod is applied again."""
    pod = create_pod(model)
    kept = {key: pod["metadata"][key] for key in ("labels", "annotations", "generateName")}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": kept, "spec": pod["spec"]}
    again = model.plane.request("POST", f"/api/v1/namespaces/{model.namespace}/pods", body)
    assert again["spec"] == pod["spec"]
    assert again["metadata"]["annotations"] == pod["metadata"]["annotations"]


def test_a_dry_run_is_injected_and_creates_nothing(model: OperatorHarness) -> None:
    pod = create_pod(model, query="?dryRun=All")
    assert init_container_names(pod) == [names.LOADER_CONTAINER]
    assert not model.plane.request("GET", f"/api/v1/namespaces/{model.namespace}/pods")["items"]


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "Job", "DaemonSet"])
def test_workloads_of_every_kind_get_injected_pods(model: OperatorHarness, kind: str) -> None:
    if kind == "DaemonSet":
        model.add_nodes("a")
    group = "batch" if kind == "Job" else "apps"
    template = pod_template()
    spec: dict[str, Any] = {"template": template}
    if kind == "Job":
        template["spec"]["restartPolicy"] = "Never"
    else:
        spec["selector"] = {"matchLabels": {"app": "a"}}
    if kind == "StatefulSet":
        spec["serviceName"] = "a"
    body = {"apiVersion": f"{group}/v1", "kind": kind, "metadata": {"name": "workload"}, "spec": spec}
    plural = f"{kind.lower()}s"
    model.plane.request("POST", f"/apis/{group}/v1/namespaces/{model.namespace}/{plural}", body)
    path = f"/api/v1/namespaces/{model.namespace}/pods"
    pods = eventually(lambda: model.plane.request("GET", path)["items"])
    assert init_container_names(pods[0]) == [names.LOADER_CONTAINER]


def test_a_pod_without_annotations_never_reaches_the_webhook(model: OperatorHarness, webhook: WebhookThread) -> None:
    before = count(webhook.app.metrics.admissions)
    pod = create_pod(model, {})
    assert not init_container_names(pod)
    assert count(webhook.app.metrics.admissions) == before


def test_opting_out_works_for_pods_and_for_namespaces(model: OperatorHarness) -> None:
    assert not init_container_names(create_pod(model, {names.MODEL: "llama", names.INJECT: "false"}))
    model.plane.kubectl("label", "namespace", model.namespace, "tonnage.dev/inject=false")
    assert not init_container_names(create_pod(model))


def test_other_containers_and_volumes_stay_unchanged(model: OperatorHarness) -> None:
    pod = create_pod(
        model,
        initContainers=[
            {"name": "istio-init", "image": "mesh"},
            {"name": "proxy", "image": "mesh", "restartPolicy": "Always"},
            {"name": "migrate", "image": "db"},
        ],
        volumes=[{"name": "mine", "emptyDir": {}}],
        securityContext={"runAsUser": 1000, "fsGroup": 1000},
        automountServiceAccountToken=False,
    )
    assert init_container_names(pod) == [names.LOADER_CONTAINER, "istio-init", "proxy", "migrate"]
    assert "mine" in [each["name"] for each in pod["spec"]["volumes"]]
    assert pod["spec"]["securityContext"] == {"runAsUser": 1000, "fsGroup": 1000}


def test_a_pod_is_admitted_under_the_restricted_profile_without_host_paths(
    harness: OperatorHarness, webhook: WebhookThread
) -> None:
    del webhook
    harness.plane.kubectl("label", "namespace", harness.namespace, "pod-security.kubernetes.io/enforce=restricted")
    create_resolved_model(harness, {"cache": {"delivery": "EmptyDir"}})
    context = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    pod = create_pod(
        harness,
        containers=[{**CONTAINERS[0], "securityContext": context}],
        securityContext={"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    )
    assert init_container_names(pod) == [names.LOADER_CONTAINER]


@pytest.mark.parametrize(
    ("notes", "sentence"),
    [
        ({names.MODEL: "nothing"}, "does not exist"),
        ({names.MODEL: "elsewhere/llama"}, "does not exist, or pods of namespace"),
        ({names.MODEL: "llama", names.FORM: "daemon"}, "tonnage.dev/form"),
        ({names.MODEL: "llama", names.CONTAINERS: "missing"}, "no container named missing"),
    ],
)
def test_a_pod_that_cannot_get_its_model_is_denied_with_a_message(
    model: OperatorHarness, notes: dict[str, str], sentence: str
) -> None:
    assert sentence in rejection_message(model, notes)


def test_a_pod_of_an_unresolved_model_is_denied(harness: OperatorHarness, webhook: WebhookThread) -> None:
    del webhook
    harness.create({"placement": {"prewarm": "None"}})
    assert "is not resolved" in rejection_message(harness)


def test_a_pod_may_continue_without_weights(model: OperatorHarness) -> None:
    pod = create_pod(model, {names.MODEL: "nothing", names.ON_FAILURE: "continue"})
    assert not init_container_names(pod)
    env = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
    assert env["TONNAGE_STATUS"] == "failed"
    assert "does not exist" in env["TONNAGE_REASON"]


def test_a_pod_of_another_namespace_is_denied_unless_access_allows_it(
    model: OperatorHarness, control_plane: ControlPlane
) -> None:
    other = OperatorHarness(control_plane, f"{model.namespace}-other")
    control_plane.kubectl("create", "namespace", other.namespace)
    annotations = {names.MODEL: f"{model.namespace}/llama"}
    assert "may not use it" in rejection_message(other, annotations)
    selector = {"matchLabels": {"kubernetes.io/metadata.name": other.namespace}}
    model.patch({"access": {"allowedNamespaces": {"from": "Selector", "selector": selector}}})
    assert init_container_names(create_pod(other, annotations)) == [names.LOADER_CONTAINER]


def test_warm_nodes_are_preferred_and_can_be_required(model: OperatorHarness) -> None:
    (node,) = model.add_nodes("a")
    revision = model.status()["resolved"]["revision"]
    cache = {
        "apiVersion": "tonnage.dev/v1alpha1",
        "kind": "NodeCache",
        "metadata": {"name": node, "labels": {names.HOSTNAME_LABEL: node}},
    }
    path = "/apis/tonnage.dev/v1alpha1/nodecaches"
    made = model.plane.request("POST", path, cache)
    made["status"] = {"entries": [{"name": revision, "medium": "Memory", "state": "Ready"}]}
    model.plane.request("PUT", f"{path}/{node}/status", made)

    def hosts() -> list[str]:
        affinity = create_pod(model, query="?dryRun=All")["spec"].get("affinity", {}).get("nodeAffinity", {})
        preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or [
            {"preference": {"matchExpressions": [{"values": []}]}}
        ]
        found: list[str] = preferred[0]["preference"]["matchExpressions"][0]["values"]
        return found

    eventually(lambda: hosts() == [node])
    pod = create_pod(model, {names.MODEL: "llama", names.SCHEDULING: "Require"})
    placed = eventually(
        lambda: model.plane.request("GET", f"/api/v1/namespaces/{model.namespace}/pods/{pod['metadata']['name']}")[
            "spec"
        ].get("nodeName")
    )
    assert placed == node
    model.plane.request("DELETE", f"{path}/{node}")


def _post(webhook: WebhookThread, data: bytes, path: str = "/inject") -> tuple[int, bytes]:
    request = urllib.request.Request(webhook.url + path, data=data, method="POST")
    context = ssl.create_default_context()
    webhook.ca.configure_trust(context)
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def _review(pod: Any, *, namespace: str | None = "serving", operation: str = "CREATE") -> bytes:
    request = {"uid": "u", "kind": {"version": "v1", "kind": "Pod"}, "operation": operation, "object": pod}
    if namespace:
        request["namespace"] = namespace
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()


def _answer(webhook: WebhookThread, data: bytes) -> dict[str, Any]:
    status, body = _post(webhook, data)
    assert status == 200
    response: dict[str, Any] = json.loads(body)["response"]
    assert response["uid"] == "u"
    return response


@pytest.mark.parametrize(
    "pod",
    [
        {},
        {"metadata": None, "spec": {}},
        {"metadata": {"annotations": None}},
        {"metadata": {"annotations": "x"}},
        {"metadata": []},
        {"metadata": {"annotations": {"a": 1}}, "spec": None},
        None,
    ],
)
def test_a_pod_without_annotations_is_never_denied_even_if_malformed(webhook: WebhookThread, pod: Any) -> None:
    assert _answer(webhook, _review(pod)) == {"uid": "u", "allowed": True}


def test_an_update_is_allowed_unchanged(webhook: WebhookThread) -> None:
    pod = {"metadata": {"annotations": {names.MODEL: "llama"}}, "spec": {"containers": []}}
    assert _answer(webhook, _review(pod, operation="UPDATE")) == {"uid": "u", "allowed": True}


def test_a_review_without_namespace_is_denied_with_a_message(webhook: WebhookThread) -> None:
    pod = {"metadata": {"annotations": {names.MODEL: "llama"}}, "spec": {"containers": CONTAINERS}}
    answer = _answer(webhook, _review(pod, namespace=None))
    assert not answer["allowed"]
    assert "names no namespace" in answer["status"]["message"]


def test_a_review_of_3_megabytes_gets_a_response(model: OperatorHarness, webhook: WebhookThread) -> None:
    pod = pod_template({names.MODEL: "llama", "big": "x" * (3 << 20)})
    answer = _answer(webhook, _review(pod, namespace=model.namespace))
    assert answer["allowed"]
    assert b"tonnage-loader" in base64.b64decode(answer["patch"])


def test_an_internal_error_is_counted_and_denies_only_the_annotated_pod(
    model: OperatorHarness, webhook: WebhookThread
) -> None:
    pod = {"metadata": {"annotations": {names.MODEL: "llama"}}, "spec": {"containers": [1, 2]}}
    answer = _answer(webhook, _review(pod, namespace=model.namespace))
    assert (answer["allowed"], answer["status"]["code"]) == (False, 500)
    assert count(webhook.app.metrics.admissions, result="error") >= 1


@pytest.mark.parametrize("data", [b"", b"x", b"[]", b"{}", b'{"request": null}', b'{"request": {"uid": 7}}'])
def test_a_request_that_is_no_review_gets_400(webhook: WebhookThread, data: bytes) -> None:
    assert _post(webhook, data)[0] == 400


def test_health_and_metrics_are_served(webhook: WebhookThread) -> None:
    context = ssl.create_default_context()
    webhook.ca.configure_trust(context)
    for path in ("/healthz", "/readyz", "/metrics"):
        with urllib.request.urlopen(webhook.url + path, timeout=5, context=context) as answer:
            assert answer.status == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{webhook.app.health_port}/metrics", timeout=5) as answer:
        assert b"tonnage_admission_duration_seconds_bucket" in answer.read()


def _served_certificate(webhook: WebhookThread) -> str:
    return ssl.get_server_certificate(("127.0.0.1", webhook.app.port))


def test_a_renewed_certificate_is_served_without_a_failed_request(webhook: WebhookThread) -> None:
    before = _served_certificate(webhook)
    webhook.issue_certificate()
    for _ in range(20):
        assert _post(webhook, _review({}))[0] == 200
    webhook.reload_certificate()
    assert _served_certificate(webhook) != before
    assert _post(webhook, _review({}))[0] == 200


@pytest.mark.parametrize("damage", ["garbage", "another key", "missing"])
def test_a_damaged_certificate_leaves_the_old_one_in_use(
    webhook: WebhookThread, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    before = _served_certificate(webhook)
    reloads = webhook.app.metrics.certificate_reloads
    failures = count(reloads, result="failure")
    if damage == "garbage":
        webhook.cert.write_text("not a certificate")
    elif damage == "another key":
        webhook.key.write_bytes(webhook.ca.issue_cert("other").private_key_pem.bytes())
    else:
        webhook.cert.unlink()
    webhook.reload_certificate()
    assert count(reloads, result="failure") == failures + 1
    assert "can't be used, the old one stays in use" in caplog.text
    assert _served_certificate(webhook) == before
    assert _post(webhook, _review({}))[0] == 200
    webhook.issue_certificate()
    webhook.reload_certificate()
    assert _served_certificate(webhook) != before


def test_an_unreachable_api_server_denies_only_annotated_pods(
    webhook: WebhookThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook._client_config.configuration, "host", "https://127.0.0.1:1")
    pod = {"metadata": {"annotations": {names.MODEL: "llama"}}, "spec": {"containers": CONTAINERS}}
    answer = _answer(webhook, _review(pod))
    assert answer["status"]["code"] == 503
    assert "try again" in answer["status"]["message"]
    assert _answer(webhook, _review({}))["allowed"]
