"""The policy of docs/concepts/security.md admits injected pods, and no other pods that mount host paths."""

from __future__ import annotations

import copy
import json
import re
import urllib.error
from typing import TYPE_CHECKING, Any

import pytest

from operator_support import objects
from operator_support.harness import make_installation
from operator_support.waiting import eventually
from support.repository import ROOT
from tonnage_operator.api import names
from tonnage_operator.domain.admission import inject
from tonnage_operator.domain.admission.pod_request import parse_annotations
from tonnage_operator.domain.modelweights.revisions import parse_resolve_report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from operator_support.control_plane import ControlPlane

Pod = dict[str, Any]

PLAIN: Pod = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"generateName": "p-", "annotations": {names.MODEL: "llama"}},
    "spec": {"containers": [{"name": "server", "image": "vllm"}]},
}


def injected() -> Pod:
    """Returns a pod that the webhook injected."""
    weights = objects.modelweights({"cache": {"medium": "Memory"}})
    seen = parse_resolve_report(objects.resolved_report(), weights, now="2026-01-01T00:00:00Z")
    request = parse_annotations(PLAIN["metadata"]["annotations"], namespace="serving")
    injected_model = inject.InjectedModel(request.models[0], weights, seen)  # type: ignore[arg-type]
    return inject.inject(PLAIN, (injected_model,), request, make_installation())


def host_path(path: str) -> Pod:
    """Returns a pod whose own spec mounts a host path."""
    pod = copy.deepcopy(PLAIN)
    pod["spec"]["volumes"] = [{"name": "own", "hostPath": {"path": path}}]
    pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "own", "mountPath": "/mnt"}]
    return pod


def with_writable_cache() -> Pod:
    """Returns a pod whose server mounts the whole injected volume writable."""
    pod = injected()
    pod["spec"]["containers"][0]["volumeMounts"].append({"name": "tonnage-cache", "mountPath": "/entry"})
    return pod


def with_another_loader() -> Pod:
    """Returns a pod whose loader container runs another program."""
    pod = injected()
    pod["spec"]["initContainers"][0]["image"] = "shell"
    return pod


@pytest.fixture
def policy_namespace(control_plane: ControlPlane, namespace: str) -> Iterator[str]:
    """A namespace that the policy applies to."""
    text = (ROOT / "docs" / "concepts" / "security.md").read_text()
    (policy,) = [
        each for each in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "ValidatingAdmissionPolicy" in each
    ]
    policy = policy.replace("'tonnage-loader:0.1.0'", f"'{make_installation().loader.image}'")
    control_plane.kubectl("label", "namespace", namespace, "example.com/serving=true")
    control_plane.kubectl("apply", "-f", "-", stdin=policy)
    eventually(lambda: rejection_message(control_plane, namespace, host_path("/etc")), timeout=30)
    yield namespace
    control_plane.kubectl("delete", "-f", "-", stdin=policy)


def create(plane: ControlPlane, namespace: str, pod: Pod) -> Pod:
    made: Pod = plane.request("POST", f"/api/v1/namespaces/{namespace}/pods", pod)
    return made


def rejection_message(plane: ControlPlane, namespace: str, pod: Pod) -> str:
    """Returns the message with which a pod is rejected; empty if it is admitted."""
    try:
        plane.request("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", pod)
    except urllib.error.HTTPError as error:
        with error:
            return str(json.loads(error.read())["message"])
    return ""


def test_the_policy_lets_only_loaders_write_to_host_paths(control_plane: ControlPlane, policy_namespace: str) -> None:
    plain = copy.deepcopy(PLAIN)
    assert not rejection_message(control_plane, policy_namespace, plain)
    assert not rejection_message(control_plane, policy_namespace, injected())
    assert "Host paths other than" in rejection_message(control_plane, policy_namespace, host_path("/etc"))
    assert "mounted read-only" in rejection_message(
        control_plane, policy_namespace, host_path("/dev/shm/tonnage/r-3f9c2a71b0de")
    )
    assert "mounted read-only" in rejection_message(control_plane, policy_namespace, with_writable_cache())
    assert "runs the loader" in rejection_message(control_plane, policy_namespace, with_another_loader())


def test_the_policy_keeps_ephemeral_containers_off_the_cache(
    control_plane: ControlPlane, policy_namespace: str
) -> None:
    pod = create(control_plane, policy_namespace, injected())
    debug = {"name": "debug", "image": "shell", "volumeMounts": [{"name": "tonnage-cache", "mountPath": "/entry"}]}
    path = f"/api/v1/namespaces/{policy_namespace}/pods/{pod['metadata']['name']}/ephemeralcontainers"
    pod["spec"]["ephemeralContainers"] = [debug]
    del pod["metadata"]["resourceVersion"]  # the scheduler may have changed the pod
    with pytest.raises(urllib.error.HTTPError) as caught:
        control_plane.request("PUT", path, pod)
    with caught.value as answer:
        assert "mounted read-only" in json.loads(answer.read())["message"]
    del debug["volumeMounts"]
    control_plane.request("PUT", path, pod)
