"""Violates each constraint of both schemas, one at a time, on a real API server, which rejects and names each."""

from __future__ import annotations

import contextlib
import json
import urllib.error
from typing import TYPE_CHECKING, Any

from operator_support.schema_violations import iter_violations
from tonnage_operator.api import crd

if TYPE_CHECKING:
    from collections.abc import Callable

    from operator_support.control_plane import ControlPlane
    from operator_support.schema_violations import Violation

Body = dict[str, Any]
TIME = "2026-01-01T00:00:00Z"
KEY = {"name": "ca", "key": "ca.crt"}
SELECTOR = {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}
REQUIREMENT = {"key": "a", "operator": "In", "values": ["b"]}

SPECS: list[Body] = [
    {
        "source": {
            "s3": {
                "bucket": "models",
                "prefix": "llama/",
                "endpoint": "http://s3:8333",
                "region": "us-east-1",
                "addressingStyle": "Path",
                "requesterPays": True,
                "caBundle": {"configMapKeyRef": KEY},
            }
        },
        "credentials": {"secretRef": {"name": "reader"}},
        "files": {
            "weights": "Auto",
            "tensors": ["*.tensors"],
            "companions": ["*.json"],
            "exclude": ["x"],
            "ranks": {"pattern": "rank-%d.tensors", "count": 8},
        },
        "revision": {
            "policy": "Track",
            "interval": "1h",
            "update": "Manual",
            "pin": "r-3f9c2a71b0de",
            "expectedDigest": "sha256:" + "0" * 64,
            "rollout": {"maxUnavailable": "10%"},
        },
        "verify": "CRC32",
        "verifyOnHit": True,
        "cache": {
            "medium": "Memory",
            "layout": "Safetensors",
            "computedBuffers": "InShards",
            "delivery": "HostPath",
            "retention": "Evictable",
        },
        "placement": {
            "prewarm": "Count",
            "count": 3,
            "nodeSelector": {"a": "b"},
            "nodeAffinity": {"nodeSelectorTerms": [{"matchExpressions": [REQUIREMENT], "matchFields": [REQUIREMENT]}]},
            "tolerations": [
                {"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute", "tolerationSeconds": 5}
            ],
            "maxConcurrentNodes": 4,
            "scheduling": "Prefer",
        },
        "loader": {
            "form": "Init",
            "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}},
            "connections": 32,
            "partSize": "16Mi",
            "bandwidthLimit": "5Gi",
            "timeout": "1h",
        },
        "access": {"allowedNamespaces": {"from": "Selector", "selector": SELECTOR}},
        "suspend": False,
    },
    {
        "source": {"s3": {"bucket": "models", "keys": ["a"], "caBundle": {"secretKeyRef": KEY}}},
        "credentials": {"serviceAccountName": "reader"},
        "cache": {"delivery": "PersistentVolumeClaim", "claimName": "weights"},
    },
    {
        "source": {"http": {"urls": ["https://host/a"], "caBundle": {"configMapKeyRef": KEY}}},
        "credentials": {"anonymous": {}},
    },
    {"source": {"http": {"urlsFrom": KEY, "caBundle": {"secretKeyRef": KEY}}}},
    {
        "source": {
            "hub": {
                "repo": "org/model",
                "revision": "main",
                "endpoint": "https://hub",
                "caBundle": {"configMapKeyRef": KEY},
            }
        }
    },
    {
        "source": {"hub": {"repo": "org/model", "caBundle": {"secretKeyRef": KEY}}},
        "placement": {"prewarm": "AllMatching", "gate": {"taints": ["example.com/new"], "timeout": "10m"}},
    },
]

_SEEN: Body = {
    "revision": "r-1",
    "digest": "sha256:1",
    "totalBytes": 1,
    "objectCount": 1,
    "objects": [{"key": "a", "size": 1, "etag": "e", "versionId": "v", "checksum": "crc64nvme:8e49c46600c8d49d"}],
    "behavior": {"addressingStyle": "Virtual", "region": "eu-west-3", "etagOnly": True},
    "sourceHash": "h",
    "headersDigest": "0" * 64,
    "time": TIME,
    "number": 1,
    "usedTime": TIME,
    "source": "s3://models/",
}
_CONDITION: Body = {
    "type": "Ready",
    "status": "True",
    "reason": "Warm",
    "message": "It is.",
    "lastTransitionTime": TIME,
    "observedGeneration": 1,
}
STATUS: Body = {
    "observedGeneration": 1,
    "resolved": _SEEN,
    "available": _SEEN,
    "history": [_SEEN],
    "rollout": {
        "revision": "r-2",
        "previous": "r-1",
        "startTime": TIME,
        "maxUnavailable": 1,
        "outdated": 2,
        "inUse": False,
    },
    "lastCheckedTime": TIME,
    "medium": "Memory",
    "source": "s3://models/",
    "size": "1Gi",
    "nodes": {"desired": 1, "warm": 1, "loading": 0, "updated": 1, "failed": 0, "summary": "1/1"},
    "progress": {
        "node": "n",
        "percent": 1,
        "loadedBytes": 1,
        "totalBytes": 1,
        "bytesPerSecond": 1,
        "remainingSeconds": 1,
        "eta": "1s",
    },
    "progressSummary": "1%",
    "verifiedBy": "1 by CRC-32",
    "consumers": {"pods": 1, "namespaces": 1, "failing": 1},
    "failures": [
        {
            "node": "n",
            "reason": "AccessDenied",
            "message": "No.",
            "attempts": 1,
            "time": TIME,
            "nextAttemptTime": TIME,
            "pod": "a/b",
        }
    ],
    "notes": ["Served with other flags."],
    "conditions": [_CONDITION],
}
RECORD: Body = {
    "bootID": "b",
    "media": [
        {
            "name": "Memory",
            "capacityBytes": 1,
            "usedBytes": 1,
            "reservedBytes": 1,
            "freeBytes": 1,
            "fileSystemBytes": 1,
            "pressure": True,
            "namespaces": [{"name": "serving", "usedBytes": 1, "reservedBytes": 1}],
        }
    ],
    "entries": [
        {
            "name": "r-1",
            "medium": "Memory",
            "state": "Ready",
            "bytes": 1,
            "reservedBytes": 1,
            "ranks": "0-3",
            "models": ["a/b"],
            "retention": "Evictable",
            "lastUsedTime": TIME,
            "verified": "CRC32",
            "verifiedBy": "1 by CRC-32",
            "servedBy": "vllm",
            "revision": "r-1",
            "image": "engine:1",
        }
    ],
    "summary": {
        "memoryUsed": "1Gi",
        "memoryReserved": "1Gi",
        "memoryFree": "1Gi",
        "diskUsed": "1Gi",
        "diskReserved": "1Gi",
        "diskFree": "1Gi",
        "entries": 1,
        "loading": 0,
    },
    "conditions": [_CONDITION],
}
GROUP = "/apis/tonnage.dev/v1alpha1"


def _schema(file: str, part: str) -> Body:
    schema = crd.definitions()[file]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    found: Body = schema["properties"][part]
    return found


def _unexpected_results(violations: list[Violation], send: Callable[[Body], object]) -> list[str]:
    """Returns the violations that were accepted, or rejected for another reason."""
    wrong = []
    for violation in violations:
        message = "accepted"
        try:
            send(violation.body)
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):
                message = json.loads(error.read())["message"]
        last = [step for step in violation.path if step != "*"][-1]
        if violation.message not in message or last not in message:
            wrong.append(f"{violation.name} -> {message[:300]}")
    return wrong


def test_every_constraint_of_a_spec_is_enforced_and_named(control_plane: ControlPlane, namespace: str) -> None:
    path = f"{GROUP}/namespaces/{namespace}/modelweights?dryRun=All&fieldValidation=Strict"

    def send(spec: Body) -> object:
        body = {"apiVersion": "tonnage.dev/v1alpha1", "kind": "ModelWeights", "metadata": {"generateName": "m-"}}
        return control_plane.request("POST", path, {**body, "spec": spec})

    for sample in SPECS:
        send(sample)
    violations = list(iter_violations(_schema("modelweights.yaml", "spec"), SPECS))
    assert len(violations) > 200
    assert "\n".join(_unexpected_results(violations, send)) == ""


def test_every_constraint_of_a_status_is_enforced_and_named(control_plane: ControlPlane, namespace: str) -> None:
    """Validates what the operator writes, and rejects invalid NodeCaches of other clients."""
    kinds: list[tuple[str, str, Body, Body]] = [
        ("modelweights.yaml", f"{GROUP}/namespaces/{namespace}/modelweights", {"spec": SPECS[3]}, STATUS),
        ("nodecaches.yaml", f"{GROUP}/nodecaches", {}, RECORD),
    ]
    for file, path, rest, sample in kinds:
        kind = {"modelweights.yaml": "ModelWeights", "nodecaches.yaml": "NodeCache"}[file]
        body = {"apiVersion": "tonnage.dev/v1alpha1", "kind": kind, "metadata": {"name": namespace}, **rest}
        made = control_plane.request("POST", path, body)
        target = f"{path}/{namespace}/status?dryRun=All"

        def send(status: Body, made: Body = made, target: str = target) -> object:
            return control_plane.request("PUT", target, {**made, "status": status})

        send(sample)
        assert not _unexpected_results(list(iter_violations(_schema(file, "status"), [sample])), send)
        control_plane.request("DELETE", f"{path}/{namespace}")
