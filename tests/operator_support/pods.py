"""Users' pods and the models and claims that they use, on a real control plane."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from operator_support import objects
from support.waiting import eventually
from tonnage_operator.api import names
from tonnage_operator.api.status import SeenRevision
from tonnage_operator.domain.modelweights.revisions import parse_resolve_report
from tonnage_operator.domain.observed.model_weights import parse_model_weights

if TYPE_CHECKING:
    from operator_support.harness import OperatorHarness

CONTAINERS: list[dict[str, Any]] = [{"name": "server", "image": "vllm"}]


def pod_template(annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """Returns a pod template that requests the model ``llama``, unless other annotations are given."""
    return {
        "metadata": {
            "labels": {"app": "a"},
            "annotations": {names.MODEL: "llama"} if annotations is None else annotations,
        },
        "spec": {"containers": copy.deepcopy(CONTAINERS), **spec},
    }


def create_resolved_model(harness: OperatorHarness, spec: dict[str, Any] | None = None, *, name: str = "llama") -> str:
    """Creates a ``ModelWeights`` with the status of a resolved one, and returns its revision."""
    body = harness.create({"placement": {"prewarm": "None"}, **(spec or {})}, name=name)
    folder = body["spec"]["source"]["s3"]["prefix"].rstrip("/")
    report = objects.resolved_report(bucket=harness.namespace, folder=folder)
    seen = parse_resolve_report(report, parse_model_weights(body), now="2026-01-01T00:00:00Z")
    assert isinstance(seen, SeenRevision)
    body["status"] = {"resolved": seen.model_dump(mode="json", by_alias=True, exclude_none=True)}
    harness.plane.request("PUT", harness.object_path(name) + "/status", body)
    return seen.revision


def create_pod(
    harness: OperatorHarness, annotations: dict[str, str] | None = None, *, query: str = "", **spec: Any
) -> dict[str, Any]:
    """Creates a pod from ``pod_template`` and returns it as admitted."""
    template = pod_template(annotations, **spec)
    template["metadata"]["generateName"] = "p-"
    body = {"apiVersion": "v1", "kind": "Pod", **template}
    made: dict[str, Any] = harness.plane.request("POST", f"/api/v1/namespaces/{harness.namespace}/pods{query}", body)
    return made


def delete_pod(harness: OperatorHarness, pod: dict[str, Any]) -> None:
    """Requests the deletion of a pod; the fake kubelet completes it."""
    harness.plane.request("DELETE", f"/api/v1/namespaces/{harness.namespace}/pods/{pod['metadata']['name']}")


def init_container_names(pod: dict[str, Any]) -> list[str]:
    """Returns the names of a pod's init containers, without the holders that stay beside loaders."""
    found = [each["name"] for each in pod["spec"].get("initContainers") or ()]
    return [name for name in found if not name.startswith(names.HOLDER_CONTAINER)]


def revision_of(pod: dict[str, Any]) -> str:
    """Returns the revision in the annotation of a pod with one model."""
    revision: str = pod["metadata"]["annotations"][names.REVISION].partition("=")[2]
    return revision


def volumes_by_name(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in pod["spec"]["volumes"]}


def create_pvc(harness: OperatorHarness, name: str = "weights") -> None:
    """Creates a claim and a volume, and waits until Kubernetes has bound them.

    The scheduler may look at a pod for the last time just before its claim is bound, and then not again for minutes.
    """
    pv: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{harness.namespace}-{name}"},
        "spec": {
            "capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteMany"],
            "hostPath": {"path": "/var/nothing"},
            "storageClassName": "",
            "claimRef": {"namespace": harness.namespace, "name": name},
        },
    }
    pvc = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "resources": {"requests": {"storage": "10Gi"}},
        },
    }
    harness.plane.request("POST", "/api/v1/persistentvolumes", pv)
    claims = f"/api/v1/namespaces/{harness.namespace}/persistentvolumeclaims"
    harness.plane.request("POST", claims, pvc)
    eventually(lambda: harness.plane.request("GET", f"{claims}/{name}")["status"]["phase"] == "Bound", timeout=30)
