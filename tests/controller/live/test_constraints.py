"""Constraints of the schema on a real API server: valid specs are accepted, invalid ones rejected with a message."""

from __future__ import annotations

import copy
import json
import urllib.error
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from operator_support.schema_violations import iter_fields
from support.repository import ROOT
from support.waiting import eventually
from tonnage_operator.api import crd
from tonnage_operator.api.modelweights import ModelWeightsSpec
from tonnage_operator.api.status import MAX_HISTORY, MAX_OBJECTS
from tonnage_operator.domain.specs.plans import MAX_PLAN_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from operator_support.control_plane import ControlPlane

MINIMAL: dict[str, Any] = {"source": {"s3": {"bucket": "models", "prefix": "llama/"}}}
HTTP = {"source": {"http": {"urls": ["https://host/a.tensors"]}}}
SHA = "sha256:" + "0" * 64


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns ``base`` with a JSON merge patch applied: None removes a field."""
    out = copy.deepcopy(base)
    for key, value in changes.items():
        out[key] = _merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
        if value is None:
            del out[key]
    return out


def _create(plane: ControlPlane, namespace: str, spec: Any) -> dict[str, Any]:
    body = {
        "apiVersion": "tonnage.dev/v1alpha1",
        "kind": "ModelWeights",
        "metadata": {"generateName": "m-"},
        "spec": spec,
    }
    path = f"/apis/tonnage.dev/v1alpha1/namespaces/{namespace}/modelweights?dryRun=All&fieldValidation=Strict"
    answer: dict[str, Any] = plane.request("POST", path, body)
    return answer


@pytest.fixture(scope="module")
def tenant(control_plane: ControlPlane) -> str:
    control_plane.kubectl("create", "namespace", "constraints")
    return "constraints"


VALID: dict[str, dict[str, Any]] = {
    "source alone": {},
    "keys": {"source": {"s3": {"prefix": None, "keys": ["a.tensors", "config.json"]}}},
    "empty prefix": {"source": {"s3": {"prefix": ""}}},
    "endpoint": {"source": {"s3": {"endpoint": "http://s3.storage:8333", "region": "us-east-1"}}},
    "endpoint with path": {"source": {"s3": {"endpoint": "https://gw/s3", "addressingStyle": "Path"}}},
    "ca from config map": {"source": {"s3": {"caBundle": {"configMapKeyRef": {"name": "ca", "key": "ca.crt"}}}}},
    "ca from secret": {"source": {"s3": {"caBundle": {"secretKeyRef": {"name": "ca", "key": "ca.crt"}}}}},
    "urls": {"source": {"s3": None, **HTTP["source"]}},
    "urls from": {"source": {"s3": None, "http": {"urlsFrom": {"name": "u", "key": "urls"}}}},
    "hub": {"source": {"s3": None, "hub": {"repo": "Qwen/Qwen3-0.6B"}}},
    "hub revision": {"source": {"s3": None, "hub": {"repo": "gpt2", "revision": "refs/pr/3", "endpoint": "https://h"}}},
    "anonymous urls": {"source": {"s3": None, **HTTP["source"]}, "credentials": {"anonymous": {}}},
    "secret": {"credentials": {"secretRef": {"name": "s3-reader"}}},
    "account": {"credentials": {"serviceAccountName": "reader"}},
    "anonymous": {"credentials": {"anonymous": {}}},
    "no member": {"credentials": {}},
    "files": {"files": {"tensors": ["a*"], "companions": [], "exclude": ["x"], "ranks": {"count": 8}}},
    "safetensors": {"files": {"weights": "Safetensors", "ranks": {"pattern": "r-%d-*.safetensors"}}},
    "rank pattern": {"files": {"ranks": {"pattern": "rank-%d.tensors"}}},
    "track": {"revision": {"policy": "Track", "interval": "1h30m", "update": "Automatic"}},
    "pin": {"revision": {"policy": "Track", "pin": "r-3f9c2a71b0de"}},
    "digest": {"revision": {"expectedDigest": SHA}},
    "a number of nodes": {"revision": {"rollout": {"maxUnavailable": 3}}},
    "a share of the nodes": {"revision": {"rollout": {"maxUnavailable": "100%"}}},
    "shortest interval": {"revision": {"interval": "60s"}},
    "claim": {"cache": {"delivery": "PersistentVolumeClaim", "claimName": "weights", "medium": "Disk"}},
    "empty dir": {"cache": {"delivery": "EmptyDir", "medium": "Memory", "layout": "Tensorizer"}},
    "retention": {"cache": {"retention": "Evictable"}, "verify": "None"},
    "count": {"placement": {"prewarm": "Count", "count": 3, "maxConcurrentNodes": 1}},
    "placement": {
        "placement": {
            "prewarm": "AllMatching",
            "scheduling": "Require",
            "nodeSelector": {"nvidia.com/gpu.present": "true"},
            "tolerations": [{"operator": "Exists"}],
            "nodeAffinity": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["3"]}]}]
            },
        }
    },
    "gate": {"placement": {"prewarm": "AllMatching", "gate": {}}},
    "gate with taints": {"placement": {"prewarm": "AllMatching", "gate": {"taints": ["a", "example.com/b_c"]}}},
    "part size": {"loader": {"partSize": "16Mi", "bandwidthLimit": "5Gi", "connections": 32, "form": "Init"}},
    "part size in bytes": {"loader": {"partSize": 1048576}},
    "request as high as its limit": {"loader": {"resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "1000m"}}}},
    "empty label value": {"placement": {"nodeSelector": {"gpu": ""}}},
    "low bandwidth": {"loader": {"bandwidthLimit": 1024}},
    "resources": {"loader": {"resources": {"requests": {"cpu": 2, "memory": "1Gi"}, "limits": {"cpu": "2500m"}}}},
    "all namespaces": {"access": {"allowedNamespaces": {"from": "All"}}},
    "some namespaces": {"access": {"allowedNamespaces": {"from": "Selector", "selector": {"matchLabels": {"a": "b"}}}}},
    "suspended": {"suspend": True},
}

ANNOTATED = "https://host/a.tensors?X-Amz-Signature=1"
INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "no source": ({"source": None}, "spec.source: Required"),
    "safetensors as copies of .tensors files": (
        {"files": {"weights": "Safetensors"}, "cache": {"layout": "Tensorizer"}},
        "safetensors files need layout: Safetensors",
    ),
    "empty source": ({"source": {"s3": None}}, "exactly one of s3, http and hub"),
    "two sources": (HTTP, "exactly one of s3, http and hub"),
    "hub and bucket": ({"source": {"hub": {"repo": "a/b"}}}, "exactly one of s3, http and hub"),
    "url as repo": (
        {"source": {"s3": None, "hub": {"repo": "https://huggingface.co/a/b"}}},
        "repo is organization/model, without the hub's URL",
    ),
    "hub endpoint with a token": (
        {"source": {"s3": None, "hub": {"repo": "a/b", "endpoint": "https://user:hf_x@hub"}}},
        "the token belongs into the Secret of spec.credentials.secretRef",
    ),
    "odd revision": ({"source": {"s3": None, "hub": {"repo": "a/b", "revision": "a b"}}}, "a tag or a commit"),
    "prefix and keys": ({"source": {"s3": {"keys": ["a"]}}}, "exactly one of prefix and keys"),
    "neither prefix nor keys": ({"source": {"s3": {"prefix": None}}}, "exactly one of prefix and keys"),
    "no bucket": ({"source": {"s3": {"bucket": None}}}, "bucket: Required"),
    "short bucket": ({"source": {"s3": {"bucket": "ab"}}}, "at least 3"),
    "odd bucket": ({"source": {"s3": {"bucket": "a/b/c"}}}, "what follows it in an s3:// URL is the prefix"),
    "huge list": ({"source": {"s3": {"prefix": None, "keys": ["k"] * 1001}}}, "at most 1000"),
    "empty list": ({"source": {"s3": {"prefix": None, "keys": []}}}, "at least 1"),
    "endpoint with a user": (
        {"source": {"s3": {"endpoint": "https://me:pw@host"}}},
        "keys belong into the Secret of spec.credentials.secretRef",
    ),
    "endpoint with a query": ({"source": {"s3": {"endpoint": "https://host/?a=b"}}}, "endpoint"),
    "endpoint without scheme": ({"source": {"s3": {"endpoint": "host:9000"}}}, "endpoint"),
    "odd region": ({"source": {"s3": {"region": "US East"}}}, "region is a name such as eu-central-1"),
    "odd style": ({"source": {"s3": {"addressingStyle": "path"}}}, "Unsupported value"),
    "two cas": (
        {
            "source": {
                "s3": {
                    "caBundle": {
                        "configMapKeyRef": {"name": "a", "key": "b"},
                        "secretKeyRef": {"name": "a", "key": "b"},
                    }
                }
            }
        },
        "exactly one of configMapKeyRef and secretKeyRef",
    ),
    "no ca": ({"source": {"s3": {"caBundle": {}}}}, "exactly one of configMapKeyRef and secretKeyRef"),
    "odd key": ({"source": {"s3": {"caBundle": {"secretKeyRef": {"name": "a", "key": "b/c"}}}}}, "key"),
    "presigned url": (
        {"source": {"s3": None, "http": {"urls": [ANNOTATED]}}},
        "put presigned URLs into a Secret and set",
    ),
    "no urls": ({"source": {"s3": None, "http": {}}}, "exactly one of urls and urlsFrom"),
    "two kinds of urls": (
        {"source": {"s3": None, "http": {**HTTP["source"]["http"], "urlsFrom": {"name": "a", "key": "b"}}}},
        "exactly one of urls and urlsFrom",
    ),
    "two identities": (
        {"credentials": {"secretRef": {"name": "a"}, "anonymous": {}}},
        "at most one of secretRef, serviceAccountName and anonymous",
    ),
    "keys for http": (
        {"source": {"s3": None, **HTTP["source"]}, "credentials": {"secretRef": {"name": "a"}}},
        "an http source has no credentials",
    ),
    "odd secret name": ({"credentials": {"secretRef": {"name": "A_b"}}}, "name"),
    "no tensors": ({"files": {"tensors": []}}, "at least 1"),
    "pattern without field": ({"files": {"ranks": {"pattern": "rank.tensors"}}}, "pattern"),
    "pattern with two fields": (
        {"files": {"ranks": {"pattern": "%d-%d"}}},
        "pattern has exactly one field for the rank",
    ),
    "no ranks": ({"files": {"ranks": {"count": 0}}}, "greater than or equal to 1"),
    "automatic without track": ({"revision": {"update": "Automatic"}}, "requires policy: Track"),
    "pin and automatic": (
        {"revision": {"policy": "Track", "update": "Automatic", "pin": "r-3f9c2a71b0de"}},
        "pin selects a fixed revision",
    ),
    "digest and automatic": (
        {"revision": {"policy": "Track", "update": "Automatic", "expectedDigest": SHA}},
        "expectedDigest allows one revision",
    ),
    "odd pin": ({"revision": {"pin": "v7"}}, "pin is a revision of this object's status"),
    "negative nodes": ({"revision": {"rollout": {"maxUnavailable": -1}}}, "maxUnavailable"),
    "more than all nodes": ({"revision": {"rollout": {"maxUnavailable": "101%"}}}, "a percentage from 0% to 100%"),
    "odd digest": ({"revision": {"expectedDigest": "md5:1"}}, "expectedDigest is sha256: and 64 hex digits"),
    "interval in days": ({"revision": {"interval": "1d"}}, "a duration has hours, minutes and seconds"),
    "short interval": ({"revision": {"interval": "59s"}}, "interval must be at least 1m"),
    "claim without name": ({"cache": {"delivery": "PersistentVolumeClaim"}}, "claimName is required with"),
    "name without claim": ({"cache": {"claimName": "a"}}, "claimName is required with"),
    "claim in memory": (
        {"cache": {"delivery": "PersistentVolumeClaim", "claimName": "a", "medium": "Memory"}},
        "not memory",
    ),
    "odd medium": ({"cache": {"medium": "Tape"}}, "Unsupported value"),
    "prewarmed empty dir": (
        {"cache": {"delivery": "EmptyDir"}, "placement": {"prewarm": "AllMatching"}},
        "can't be prewarmed",
    ),
    "required empty dir": (
        {"cache": {"delivery": "EmptyDir"}, "placement": {"scheduling": "Require"}},
        "Require requires delivery: HostPath",
    ),
    "gate that nothing warms": ({"placement": {"gate": {}}}, "gate requires prewarm: AllMatching"),
    "gate of a few nodes": (
        {"placement": {"prewarm": "Count", "count": 2, "gate": {}}},
        "gate requires prewarm: AllMatching",
    ),
    "gate without nodes": (
        {
            "cache": {"delivery": "PersistentVolumeClaim", "claimName": "a"},
            "placement": {"prewarm": "AllMatching", "gate": {}},
        },
        "placement.gate requires delivery: HostPath",
    ),
    "odd taint": (
        {"placement": {"prewarm": "AllMatching", "gate": {"taints": ["a b"]}}},
        "the key of a taint is a name",
    ),
    "no taint": ({"placement": {"prewarm": "AllMatching", "gate": {"taints": []}}}, "should have at least 1 items"),
    "odd timeout": ({"placement": {"prewarm": "AllMatching", "gate": {"timeout": "soon"}}}, "a duration has hours"),
    "count missing": ({"placement": {"prewarm": "Count"}}, "count is required with"),
    "count not asked": ({"placement": {"count": 2}}, "count is required with"),
    "zero count": ({"placement": {"prewarm": "Count", "count": 0}}, "greater than or equal to 1"),
    "no node at a time": ({"placement": {"maxConcurrentNodes": 0}}, "greater than or equal to 1"),
    "odd operator": ({"placement": {"tolerations": [{"operator": "Like"}]}}, "Unsupported value"),
    "small parts": ({"loader": {"partSize": "512Ki"}}, "between 1Mi and 1Gi"),
    "small parts in bytes": ({"loader": {"partSize": 1000}}, "between 1Mi and 1Gi"),
    "large parts": ({"loader": {"partSize": "2Gi"}}, "between 1Mi and 1Gi"),
    "odd quantity": ({"loader": {"bandwidthLimit": "fast"}}, "a quantity is a number"),
    "quantity with an exponent": ({"loader": {"partSize": "1e6"}}, "a quantity is a number"),
    "negative quantity": ({"loader": {"resources": {"limits": {"cpu": -1}}}}, "a quantity is a number"),
    "odd resource": (
        {"loader": {"resources": {"requests": {"memory": "lots"}, "limits": {"memory": "1Gi"}}}},
        "a quantity is a number",
    ),
    "name in capitals": ({"credentials": {"secretRef": {"name": "S3-Reader"}}}, "a name has lower-case letters"),
    "odd account": ({"credentials": {"serviceAccountName": "a b"}}, "a name has lower-case letters"),
    "odd key of a bundle": (
        {"source": {"s3": {"caBundle": {"configMapKeyRef": {"name": "ca", "key": "a/b"}}}}},
        "a key has letters, digits",
    ),
    "no bandwidth": ({"loader": {"bandwidthLimit": "0"}}, "bandwidthLimit must be at least 1Ki"),
    "no bandwidth as a number": ({"loader": {"bandwidthLimit": 0}}, "bandwidthLimit must be at least 1Ki"),
    "less than a byte": ({"loader": {"bandwidthLimit": "500m"}}, "bandwidthLimit must be at least 1Ki"),
    "request above its limit": (
        {"loader": {"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}}},
        "a request is at most the limit",
    ),
    "request above its limit in other units": (
        {"loader": {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "1500m"}}}},
        "a request is at most the limit",
    ),
    "odd label value": ({"placement": {"nodeSelector": {"gpu": "a b"}}}, "the value of a label has letters"),
    "odd label value of a namespace": (
        {"access": {"allowedNamespaces": {"from": "Selector", "selector": {"matchLabels": {"team": "-x"}}}}},
        "the value of a label has letters",
    ),
    "no connections": ({"loader": {"connections": 0}}, "greater than or equal to 1"),
    "short timeout": ({"loader": {"timeout": "5s"}}, "timeout must be at least 10s"),
    "selector missing": ({"access": {"allowedNamespaces": {"from": "Selector"}}}, "selector is required with"),
    "selector not asked": (
        {"access": {"allowedNamespaces": {"from": "All", "selector": {"matchLabels": {"a": "b"}}}}},
        "selector is required with",
    ),
    "unknown field": ({"sauce": "tomato"}, 'unknown field "spec.sauce"'),
    "unknown nested field": ({"cache": {"meduim": "Disk"}}, 'unknown field "spec.cache.meduim"'),
    "wrong type": ({"suspend": "yes"}, "spec.suspend"),
}


@pytest.mark.parametrize("changes", VALID.values(), ids=VALID)
def test_a_valid_spec_is_accepted_and_read_back(
    control_plane: ControlPlane, tenant: str, changes: dict[str, Any]
) -> None:
    spec = _merge(MINIMAL, changes)
    stored = _create(control_plane, tenant, spec)["spec"]
    assert ModelWeightsSpec.model_validate(stored) == ModelWeightsSpec.model_validate(spec), (
        "defaults of the CRD and of the model differ"
    )


@pytest.mark.parametrize(("changes", "sentence"), INVALID.values(), ids=INVALID)
def test_an_invalid_spec_is_rejected_with_a_message(
    control_plane: ControlPlane, tenant: str, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        _create(control_plane, tenant, _merge(MINIMAL, changes))
    with caught.value as refusal:
        message = json.loads(refusal.read())["message"]
    assert sentence in message


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "modelweights").glob("*.yaml")), ids=lambda path: path.stem
)
def test_each_example_is_accepted(control_plane: ControlPlane, tenant: str, path: Path) -> None:
    documents = [each for each in yaml.safe_load_all(path.read_text()) if each["kind"] == "ModelWeights"]
    for document in documents:
        assert _create(control_plane, tenant, document["spec"])["spec"]


def test_every_validation_rule_has_an_invalid_spec_here() -> None:
    messages: set[str] = set()

    def collect(schema: Any) -> None:
        if isinstance(schema, dict):
            messages.update(rule["message"] for rule in schema.get("x-kubernetes-validations", ()))
            for child in schema.values():
                collect(child)
        elif isinstance(schema, list):
            for child in schema:
                collect(child)

    collect(crd.definitions())
    untested = [message for message in messages if not any(part in message for _, part in INVALID.values())]
    assert not untested


def test_explain_describes_every_field(control_plane: ControlPlane) -> None:
    """``kubectl explain`` shows what the API server publishes."""
    document = eventually(lambda: _published(control_plane), timeout=20)
    for kind in ("ModelWeights", "NodeCache"):
        schema = document["components"]["schemas"][f"dev.tonnage.v1alpha1.{kind}"]
        fields = ((path, field) for path, field in iter_fields(schema) if path and path[-1] != "*")
        assert not [path for path, field in fields if "metadata" not in path and not field.get("description")]


def _published(plane: ControlPlane) -> dict[str, Any]:
    try:
        document: dict[str, Any] = plane.request("GET", "/openapi/v3/apis/tonnage.dev/v1alpha1")
    except urllib.error.HTTPError as error:
        with error:
            return {}
    return document


def test_the_api_server_stores_a_status_with_the_longest_lists(control_plane: ControlPlane, tenant: str) -> None:
    """The one in use, an available newer one, and a history with as many lists as it may have."""
    spec = _merge(MINIMAL, {"source": {"s3": {"prefix": None, "keys": [f"{i:04}" * 20 for i in range(1000)]}}})
    base = f"/apis/tonnage.dev/v1alpha1/namespaces/{tenant}/modelweights"
    body = {"apiVersion": "tonnage.dev/v1alpha1", "kind": "ModelWeights", "metadata": {"name": "long"}, "spec": spec}
    made = control_plane.request("POST", base, body)
    count = MAX_OBJECTS
    pins: list[dict[str, Any]] = [
        {"key": f"{i:08}", "size": 1 << 40, "etag": "e" * 38, "versionId": ""} for i in range(count)
    ]
    assert sum(len(pin["key"]) + len(pin["etag"]) for pin in pins) <= MAX_PLAN_BYTES < 50 * count
    seen = {"revision": "r-000000000000", "digest": SHA, "objects": pins, "time": "2026-01-01T00:00:00Z"}
    past = {**seen, "objects": None}
    made["status"] = {"resolved": seen, "available": seen, "history": [seen, seen, *([past] * (MAX_HISTORY - 2))]}
    stored = control_plane.request("PUT", f"{base}/long/status", made)
    assert len(stored["status"]["history"][1]["objects"]) == count
    control_plane.request("DELETE", f"{base}/long")


def test_explain_describes_a_nested_field(control_plane: ControlPlane) -> None:
    def explained() -> bool:
        field = "modelweights.spec.source.s3.caBundle.configMapKeyRef.key"
        return "Key that contains the value." in control_plane.kubectl("explain", field, check=False).stdout

    eventually(explained, timeout=20)
