"""Builders of Kubernetes objects, parsed objects and reports for tests of decisions."""

from __future__ import annotations

import copy
from typing import Any

from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.domain.installation import Installation
from tonnage_operator.domain.observed.model_weights import ModelWeights, parse_model_weights
from tonnage_operator.domain.observed.pod import Pod, parse_pod
from tonnage_operator.domain.signing import SigningKeys

GIB = 1 << 30
UID = "11111111-2222-3333-4444-555555555555"

KEYS = SigningKeys((b"the current key of the tests, 32 bytes or more",))

CA_PEM = "-----BEGIN CERTIFICATE-----\nMIIB\nAgIB\n-----END CERTIFICATE-----\n"
"""What has the form of a CA's certificate."""
INSTALLATION = Installation.model_validate(
    {
        "signing": KEYS,
        "namespace": "tonnage-system",
        "media": {"Memory": {"hostPath": "/dev/shm/tonnage"}, "Disk": {"hostPath": "/var/lib/tonnage"}},
        "sharing": "Cluster",
        "loader": {"image": "tonnage-loader:1"},
        "reports": {"url": "https://tonnage-controller.tonnage-system.svc:8443/v1/reports", "caPem": CA_PEM},
    }
)

SOURCE: dict[str, Any] = {"s3": {"bucket": "models", "prefix": "llama/", "endpoint": "https://s3:8333"}}


def deep_merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of ``base`` with the changes merged in, dicts at any depth."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        result[key] = (
            deep_merge(result[key], value) if isinstance(value, dict) and isinstance(result.get(key), dict) else value
        )
    return result


def modelweights_manifest(
    spec: dict[str, Any] | None = None,
    *,
    name: str = "llama",
    namespace: str = "serving",
    uid: str = UID,
    status: dict[str, Any] | None = None,
    **metadata: Any,
) -> dict[str, Any]:
    """Returns a ``ModelWeights`` as the API server returns it."""
    return {
        "apiVersion": "tonnage.dev/v1alpha1",
        "kind": "ModelWeights",
        "metadata": {"name": name, "namespace": namespace, "uid": uid, "generation": 1, **metadata},
        "spec": deep_merge({"source": SOURCE}, spec or {}),
        "status": status or {},
    }


def modelweights(spec: dict[str, Any] | None = None, **more: Any) -> ModelWeights:
    """Returns a parsed ``ModelWeights``."""
    return parse_model_weights(modelweights_manifest(spec, **more))


def object_pins(version: str = "1", count: int = 2, folder: str = "llama") -> tuple[contract.ObjectPin, ...]:
    """Returns the objects of a revision; each version has different ETags."""
    tensors = [
        contract.ObjectPin(key=f"{folder}/model-{index}.tensors", size=GIB, etag=f"{version}-{index}")
        for index in range(count)
    ]
    return (contract.ObjectPin(key=f"{folder}/config.json", size=1000, etag=version), *tensors)


def resolved_report(
    version: str = "1",
    *,
    bucket: str = "models",
    count: int = 2,
    folder: str = "llama",
    behavior: contract.StoreBehavior | None = None,
) -> contract.Report:
    """Returns the report of a successful resolve Job."""
    objects = object_pins(version, count, folder)
    place = contract.source_place(SOURCE["s3"]["endpoint"], bucket)
    digest = contract.revision_digest((place, pin) for pin in objects)
    return contract.Report(
        kind=contract.ReportKind.RESOLVED,
        digest=digest,
        revision=contract.revision_id(digest),
        resolved=(contract.ResolvedSource(place=place, objects=objects, behavior=behavior),),
    )


def failed_report(reason: str, message: str = "It failed.") -> contract.Report:
    """Returns the report of a loader that failed."""
    return contract.Report(outcome=contract.Outcome.FAILED, reason=reason, message=message)


def get_condition(body: dict[str, Any], kind: str) -> tuple[str, str, str]:
    """Returns status, reason and message of an object's condition; empty strings if it is not set."""
    for each in (body.get("status") or {}).get("conditions") or ():
        if each["type"] == kind:
            return each["status"], each.get("reason", ""), each.get("message", "")
    return "", "", ""


def node(name: str, *, labels: dict[str, str] | None = None, boot_id: str = "boot-1", **spec: Any) -> dict[str, Any]:
    """Returns a Node as the API server returns it; ``ready=False`` for one that is not ready."""
    ready = spec.pop("ready", True)
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "labels": {names.HOSTNAME_LABEL: name, **(labels or {})},
        },
        "spec": spec,
        "status": {
            "nodeInfo": {"bootID": boot_id},
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def stored_job(job: dict[str, Any]) -> dict[str, Any]:
    """Returns a Job as the API server stores it. It has no pod yet and must not count as lost."""
    stored = copy.deepcopy(job)
    stored["metadata"]["uid"] = "job-" + job["metadata"]["name"]
    return stored


def terminated_pod(job: dict[str, Any], report: contract.Report | None, *, exit_code: int = 0, reason: str = "") -> Pod:
    """Returns the pod of a Job whose loader has terminated."""
    message = contract.termination_message(report).decode() if report else ""
    return parse_pod(
        {
            "metadata": {
                "namespace": job["metadata"]["namespace"],
                "name": job["metadata"]["name"] + "-x",
                "uid": "pod-" + job["metadata"]["name"],
                "labels": job["metadata"]["labels"],
                "annotations": job["spec"]["template"]["metadata"]["annotations"],
                "ownerReferences": [{"kind": "Job", "uid": job["metadata"]["uid"], "controller": True}],
            },
            "spec": job["spec"]["template"]["spec"],
            "status": {
                "phase": "Failed" if exit_code else "Succeeded",
                "containerStatuses": [
                    {
                        "name": names.LOADER_CONTAINER,
                        "state": {"terminated": {"exitCode": exit_code, "reason": reason, "message": message}},
                    }
                ],
            },
        }
    )
