"""Pods of users, and what they use, on a real control plane."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from operator_support import objects
from tonnage_operator.api import names
from tonnage_operator.api.status import SeenRevision
from tonnage_operator.domain.modelweights.revisions import parse_resolve_report
from tonnage_operator.domain.observed.model_weights import parse_model_weights

if TYPE_CHECKING:
    from operator_support.fleet import Fleet

CONTAINERS: list[dict[str, Any]] = [{"name": "server", "image": "vllm"}]


def pod_template(notes: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """Returns the template of a pod that asks for the model ``llama``, unless other annotations are given."""
    return {
        "metadata": {"labels": {"app": "a"}, "annotations": {names.MODEL: "llama"} if notes is None else notes},
        "spec": {"containers": copy.deepcopy(CONTAINERS), **spec},
    }


def make_resolved(fleet: Fleet, spec: dict[str, Any] | None = None, *, name: str = "llama") -> str:
    """Creates an object as the controller would have left it, resolved, and returns its revision."""
    body = fleet.create({"placement": {"prewarm": "None"}, **(spec or {})}, name=name)
    report = objects.resolved_report(bucket=fleet.namespace)
    seen = parse_resolve_report(report, parse_model_weights(body), now="2026-01-01T00:00:00Z")
    assert isinstance(seen, SeenRevision)
    body["status"] = {"resolved": seen.model_dump(mode="json", by_alias=True, exclude_none=True)}
    fleet.plane.request("PUT", fleet.path(name) + "/status", body)
    return seen.revision


def create_pod(fleet: Fleet, notes: dict[str, str] | None = None, *, query: str = "", **spec: Any) -> dict[str, Any]:
    """Creates such a pod, and returns what was admitted."""
    template = pod_template(notes, **spec)
    template["metadata"]["generateName"] = "p-"
    body = {"apiVersion": "v1", "kind": "Pod", **template}
    made: dict[str, Any] = fleet.plane.request("POST", f"/api/v1/namespaces/{fleet.namespace}/pods{query}", body)
    return made


def delete_pod(fleet: Fleet, pod: dict[str, Any]) -> None:
    """Deletes a pod, as far as the API server goes; its kubelet ends it."""
    fleet.plane.request("DELETE", f"/api/v1/namespaces/{fleet.namespace}/pods/{pod['metadata']['name']}")


def inits(pod: dict[str, Any]) -> list[str]:
    """Returns the names of a pod's init containers."""
    return [each["name"] for each in pod["spec"].get("initContainers") or ()]


def revision_of(pod: dict[str, Any]) -> str:
    """Returns the revision that a pod of one model was admitted with."""
    revision: str = pod["metadata"]["annotations"][names.REVISION].partition("=")[2]
    return revision


def volumes(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns a pod's volumes by name."""
    return {each["name"]: each for each in pod["spec"]["volumes"]}


def make_claim(fleet: Fleet, name: str = "weights") -> None:
    """Makes a claim with a volume of its own, which Kubernetes binds."""
    volume: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{fleet.namespace}-{name}"},
        "spec": {
            "capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteMany"],
            "hostPath": {"path": "/var/nothing"},
            "storageClassName": "",
            "claimRef": {"namespace": fleet.namespace, "name": name},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "resources": {"requests": {"storage": "10Gi"}},
        },
    }
    fleet.plane.request("POST", "/api/v1/persistentvolumes", volume)
    fleet.plane.request("POST", f"/api/v1/namespaces/{fleet.namespace}/persistentvolumeclaims", claim)
