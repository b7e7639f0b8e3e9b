"""Each field of a spec has an effect, and each field of a status is set in some scenario."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from operator_support import objects
from operator_support.injection import annotated_pod, inject_pod, resolved_modelweights
from operator_support.node_model import limited
from operator_support.simulation import Simulation, ended_pod, failing_pod, prewarming_simulation
from tonnage import contract
from tonnage_operator.api import crd, names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import CacheEntry
from tonnage_operator.domain.admission import access
from tonnage_operator.domain.admission.injected_model import AdmissionDenied
from tonnage_operator.domain.gate.advice import find_gate_condition
from tonnage_operator.domain.modelweights.node_selection import desired_nodes
from tonnage_operator.domain.node_matching import matches
from tonnage_operator.domain.nodecache.reconcile import decide_node
from tonnage_operator.domain.nodecache.snapshot import NodeSnapshot
from tonnage_operator.domain.observed.node import parse_node
from tonnage_operator.domain.specs import jobs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tonnage_operator.domain.observed.model_weights import ModelWeights

Spec = dict[str, Any]

TAINTED = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}
NODES = {
    name: parse_node(body)
    for name, body in {
        "a": objects.node("a", labels={"zone": "1"}),
        "b": objects.node("b", labels={"zone": "2"}),
        "tainted": objects.node("tainted", labels={"zone": "1"}, taints=[TAINTED]),
    }.items()
}


def _resolve(weights: ModelWeights) -> object:
    job = jobs.build_resolve_job(weights, objects.INSTALLATION, round_="", attempt=1)
    return job["spec"]


def _load(weights: ModelWeights) -> object:
    seen = weights.status.resolved
    assert seen
    return jobs.build_load_job(weights, seen, objects.INSTALLATION, node=NODES["a"], attempt=1)["spec"]


def _pod(weights: ModelWeights) -> object:
    return inject_pod(annotated_pod(), weights, warm=("a",))["spec"]


def _cold_pod(weights: ModelWeights) -> object:
    try:
        return inject_pod(annotated_pod(), weights)["spec"]
    except AdmissionDenied as refusal:
        return str(refusal)


def _desired(weights: ModelWeights) -> object:
    spec, installation = weights.spec.placement, objects.INSTALLATION
    matching = [node for node in NODES.values() if matches(spec, node, installation.prewarm)]
    found = desired_nodes(spec, matching, installation, seed="", warm=frozenset(), loading=set())
    return [node.name for node in found]


def _gate(weights: ModelWeights) -> object:
    enabled = objects.INSTALLATION.gate.model_copy(
        update={"enabled": True, "taints": ("example.com/a", "example.com/b")}
    )
    return find_gate_condition(weights.spec.placement, objects.INSTALLATION.model_copy(update={"gate": enabled}))


def _cross_namespace_access(weights: ModelWeights) -> object:
    return access.is_allowed(weights, "elsewhere", {"team": "a"})


def _retention(weights: ModelWeights) -> object:
    return weights.spec.cache.retention, sorted(weights.references(objects.INSTALLATION))


def _lifecycle(weights: ModelWeights) -> object:
    """Runs the scenario from a new object to a new revision at the source."""
    simulation = Simulation(weights.spec.model_dump(mode="json", by_alias=True, exclude_none=True))
    simulation.add_nodes("a", "b")
    observed: list[object] = []
    for version in "1", "2":
        simulation.converge()
        for job in simulation.active_jobs(names.ROLE_RESOLVE):
            simulation.reports[job["metadata"]["uid"]] = objects.resolved_report(version)
            simulation.finish_job(job)
        decision = simulation.converge()
        observed += [decision.requeue_after, len(simulation.loading_nodes()), simulation.status["conditions"]]
        simulation.finish_loads()
        observed.append(simulation.status["conditions"])
        simulation.advance(3700)
    return observed


ALL = {"placement": {"prewarm": "AllMatching"}}
GATED: Spec = {"placement": {"prewarm": "AllMatching", "gate": {}}}
S3 = "source.s3"
HTTP: Spec = {"source": {"s3": None, "http": {"urls": ["https://host/a.tensors"]}}}
HUB: Spec = {"source": {"s3": None, "hub": {"repo": "org/model"}}}
TRACK: Spec = {"revision": {"policy": "Track"}, **ALL}
CA = {"configMapKeyRef": {"name": "ca", "key": "ca.crt"}}
SEEN = {version: objects.resolved_report(version).revision for version in "12"}

Effect = Callable[["ModelWeights"], object]
CASES: list[tuple[str, Spec, Spec, Effect]] = [
    (f"{S3}.bucket", {}, {"source": {"s3": {"bucket": "other"}}}, _load),
    (f"{S3}.prefix", {}, {"source": {"s3": {"prefix": "other/"}}}, _load),
    (f"{S3}.keys", {}, {"source": {"s3": {"prefix": None, "keys": ["a"]}}}, _load),
    (f"{S3}.endpoint", {}, {"source": {"s3": {"endpoint": "http://other:1"}}}, _load),
    (f"{S3}.region", {}, {"source": {"s3": {"region": "eu-west-1"}}}, _load),
    (f"{S3}.addressingStyle", {}, {"source": {"s3": {"addressingStyle": "Path"}}}, _load),
    (f"{S3}.requesterPays", {}, {"source": {"s3": {"requesterPays": True}}}, _load),
    (f"{S3}.caBundle.configMapKeyRef", {}, {"source": {"s3": {"caBundle": CA}}}, _pod),
    (
        f"{S3}.caBundle.secretKeyRef",
        {},
        {"source": {"s3": {"caBundle": {"secretKeyRef": CA["configMapKeyRef"]}}}},
        _load,
    ),
    ("source.http.urls", HTTP, {"source": {"http": {"urls": ["https://host/b.tensors"]}}}, _load),
    ("source.http.urlsFrom", HTTP, {"source": {"http": {"urls": None, "urlsFrom": {"name": "u", "key": "k"}}}}, _load),
    ("source.http.caBundle", HTTP, {"source": {"http": {"caBundle": CA}}}, _load),
    ("source.hub.repo", HUB, {"source": {"hub": {"repo": "org/other"}}}, _resolve),
    ("source.hub.revision", HUB, {"source": {"hub": {"revision": "v2"}}}, _resolve),
    ("source.hub.endpoint", HUB, {"source": {"hub": {"endpoint": "https://hub"}}}, _load),
    ("source.hub.caBundle", HUB, {"source": {"hub": {"caBundle": CA}}}, _load),
    ("credentials.secretRef", HUB, {"credentials": {"secretRef": {"name": "reader"}}}, _load),
    ("credentials.anonymous", HUB, {"credentials": {"anonymous": {}}}, _load),
    ("credentials.secretRef", {}, {"credentials": {"secretRef": {"name": "reader"}}}, _pod),
    ("credentials.serviceAccountName", {}, {"credentials": {"serviceAccountName": "reader"}}, _resolve),
    ("credentials.serviceAccountName", {}, {"credentials": {"serviceAccountName": "reader"}}, _load),
    ("credentials.anonymous", {}, {"credentials": {"anonymous": {}}}, _load),
    ("files.weights", {}, {"files": {"weights": "Safetensors"}}, _resolve),
    ("files.weights", {}, {"files": {"weights": "Safetensors"}}, _load),
    ("files.tensors", {}, {"files": {"tensors": ["*.t"]}}, _resolve),
    ("files.companions", {}, {"files": {"companions": []}}, _resolve),
    ("files.exclude", {}, {"files": {"exclude": ["x"]}}, _resolve),
    ("files.ranks.pattern", {}, {"files": {"ranks": {"pattern": "r-%d"}}}, _load),
    ("files.ranks.count", {"files": {"ranks": {}}}, {"files": {"ranks": {"count": 8}}}, _load),
    ("revision.policy", ALL, {"revision": {"policy": "Track"}}, _lifecycle),
    ("revision.interval", TRACK, {"revision": {"interval": "2h"}}, _lifecycle),
    ("revision.update", TRACK, {"revision": {"update": "Automatic"}}, _lifecycle),
    ("revision.pin", TRACK, {"revision": {"pin": SEEN["2"]}}, _lifecycle),
    (
        "revision.rollout.maxUnavailable",
        {"revision": {"policy": "Track", "update": "Automatic"}, **ALL},
        {"revision": {"rollout": {"maxUnavailable": "100%"}}},
        _lifecycle,
    ),
    ("revision.expectedDigest", {}, {"revision": {"expectedDigest": "sha256:" + "0" * 64}}, _resolve),
    ("revision.expectedDigest", ALL, {"revision": {"expectedDigest": "sha256:" + "0" * 64}}, _lifecycle),
    ("verify", {}, {"verify": "Size"}, _load),
    ("verifyOnHit", {}, {"verifyOnHit": True}, _pod),
    ("cache.medium", {}, {"cache": {"medium": "Disk"}}, _pod),
    ("cache.layout", {}, {"cache": {"layout": "Tensorizer"}}, _load),
    ("cache.computedBuffers", {}, {"cache": {"computedBuffers": "InShards"}}, _load),
    ("cache.delivery", {}, {"cache": {"delivery": "EmptyDir"}}, _pod),
    (
        "cache.claimName",
        {"cache": {"delivery": "PersistentVolumeClaim", "claimName": "a"}},
        {"cache": {"claimName": "b"}},
        _pod,
    ),
    ("cache.retention", {}, {"cache": {"retention": "Evictable"}}, _retention),
    ("placement.prewarm", {}, ALL, _desired),
    ("placement.count", {"placement": {"prewarm": "Count", "count": 1}}, {"placement": {"count": 2}}, _desired),
    ("placement.nodeSelector", ALL, {"placement": {"nodeSelector": {"zone": "1"}}}, _desired),
    (
        "placement.nodeAffinity",
        ALL,
        {
            "placement": {
                "nodeAffinity": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["1"]}]}]
                }
            }
        },
        _desired,
    ),
    ("placement.tolerations", ALL, {"placement": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}}, _desired),
    ("placement.tolerations", ALL, {"placement": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}}, _load),
    ("placement.maxConcurrentNodes", ALL, {"placement": {"maxConcurrentNodes": 1}}, _lifecycle),
    ("placement.scheduling", {}, {"placement": {"scheduling": "Require"}}, _pod),
    ("placement.scheduling", {}, {"placement": {"scheduling": "Require"}}, _cold_pod),
    ("placement.scheduling", {}, {"placement": {"scheduling": "Require"}}, _gate),
    ("placement.gate.taints", GATED, {"placement": {"gate": {"taints": ["example.com/a"]}}}, _gate),
    ("placement.gate.timeout", GATED, {"placement": {"gate": {"timeout": "1m"}}}, _gate),
    ("loader.form", {}, {"loader": {"form": "Init"}}, _pod),
    ("loader.resources", {}, {"loader": {"resources": {"requests": {"cpu": "7"}}}}, _load),
    ("loader.resources", {}, {"loader": {"resources": {"limits": {"cpu": "7"}}}}, _pod),
    ("loader.connections", {}, {"loader": {"connections": 3}}, _load),
    ("loader.partSize", {}, {"loader": {"partSize": "2Mi"}}, _load),
    ("loader.bandwidthLimit", {}, {"loader": {"bandwidthLimit": "1Gi"}}, _load),
    ("loader.timeout", {}, {"loader": {"timeout": "10m"}}, _load),
    ("access.allowedNamespaces.from", {}, {"access": {"allowedNamespaces": {"from": "All"}}}, _cross_namespace_access),
    (
        "access.allowedNamespaces.selector",
        {"access": {"allowedNamespaces": {"from": "Selector", "selector": {"matchLabels": {"team": "b"}}}}},
        {"access": {"allowedNamespaces": {"selector": {"matchLabels": {"team": "a"}}}}},
        _cross_namespace_access,
    ),
    ("suspend", ALL, {"suspend": True}, _lifecycle),
]


def _with_spec(spec: Spec) -> ModelWeights:
    """Returns an object whose revision in use is of the current source."""
    weights, first = objects.modelweights(spec), resolved_modelweights().status.resolved
    assert first
    seen = first.model_copy(update={"source_hash": weights.source_hash})
    return replace(weights, status=weights.status.model_copy(update={"resolved": seen}))


@pytest.mark.parametrize(("field", "base", "change", "effect"), CASES, ids=[f"{c[0]} {c[3].__name__}" for c in CASES])
def test_each_field_of_a_spec_has_an_effect(field: str, base: Spec, change: Spec, effect: Effect) -> None:
    del field
    before, after = effect(_with_spec(base)), effect(_with_spec(objects.deep_merge(base, change)))
    assert json.dumps(before, default=str) != json.dumps(after, default=str)


def _leaves(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    if children := schema.get("properties"):
        for name, child in children.items():
            yield from _leaves(child, f"{path}.{name}" if path else name)
    elif schema.get("type") == "array" and "properties" in schema["items"]:
        yield from _leaves(schema["items"], path)
    else:
        yield path


def _schema(kind: str, part: str) -> dict[str, Any]:
    whole = crd.definitions()[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    found: dict[str, Any] = whole["properties"][part]
    return found


def test_no_field_of_a_spec_is_missing_above() -> None:
    tried = {case[0] for case in CASES}
    leaves = list(_leaves(_schema("modelweights.yaml", "spec")))
    missing = [leaf for leaf in leaves if not any(leaf == field or leaf.startswith(f"{field}.") for field in tried)]
    assert not missing


def _status_fields(status: Any, path: str = "") -> Iterator[str]:
    if isinstance(status, dict):
        for name, child in status.items():
            yield from _status_fields(child, f"{path}.{name}" if path else name)
    elif isinstance(status, list) and status and isinstance(status[0], dict):
        for item in status:
            yield from _status_fields(item, path)
    else:
        yield path


def test_every_field_of_a_status_is_set_in_some_scenario() -> None:
    reported: set[str] = set()
    simulation = prewarming_simulation(2, {"revision": {"policy": "Track", "interval": "10m"}})
    simulation.finish_resolve(behavior=contract.StoreBehavior(etag_only=True))
    first, second = simulation.active_jobs(names.ROLE_LOAD)
    progress = contract.Progress(
        phase="loading", loaded_bytes=1, total_bytes=2, bytes_per_second=1.0, remaining_seconds=1
    )
    simulation.reports[first["metadata"]["uid"]] = contract.Report(kind=contract.ReportKind.PROGRESS, progress=progress)
    simulation.finish_job(second, objects.failed_report("AccessDenied"), code=10)
    simulation.converge()
    reported |= set(_status_fields(simulation.status))
    simulation.consumers = [ended_pod(simulation, "n0", "Other flags serve its files.")]
    simulation.converge()
    reported |= set(_status_fields(simulation.status))
    simulation.consumers = [failing_pod(simulation, "elsewhere")]
    simulation.converge()
    reported |= set(_status_fields(simulation.status))
    simulation.advance(601)
    simulation.finish_resolve("2", contract.StoreBehavior(etag_only=True))
    reported |= set(_status_fields(simulation.status))
    simulation.spec["revision"] |= {"pin": simulation.status["available"]["revision"]}
    simulation.converge()
    reported |= set(_status_fields(simulation.status))
    simulation.consumers = []
    for _ in range(3):
        simulation.finish_loads()
        simulation.advance(601)
    reported |= set(_status_fields(simulation.status))
    back = {"pin": simulation.status["history"][0]["revision"], "rollout": {"maxUnavailable": "100%"}}
    simulation.spec["revision"] |= back
    simulation.converge()
    reported |= set(_status_fields(simulation.status))
    assert set(_leaves(_schema("modelweights.yaml", "status"))) == reported


def test_every_field_of_a_node_cache_is_set_in_some_scenario() -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve()
    (job,) = simulation.active_jobs(names.ROLE_LOAD)
    revision = simulation.status["resolved"]["revision"]
    simulation.finish_job(
        job, contract.Report(outcome=contract.Outcome.LOADED, bytes=1, revision=revision, verified_by="MD5: 1 object")
    )
    simulation.converge()
    entry = CacheEntry.model_validate(
        {
            "name": "serving/r-2",
            "medium": "Memory",
            "state": "Ready",
            "ranks": "0-3",
            "verified": "crc32",
            "image": "e",
            "servedBy": "x",
        }
    )
    status = simulation.caches["n0"]
    known = status.model_copy(update={"entries": (*(status.entries or ()), entry)})
    decision = decide_node(
        NodeSnapshot(
            now=simulation.now,
            installation=limited(namespaceCapacity="1Ti"),
            node=simulation.nodes["n0"],
            uid="cache",
            status=known,
            reported_media={Medium.MEMORY: contract.Medium(filesystem="tmpfs", capacity_bytes=100, free_bytes=1)},
        )
    )
    assert decision.status is not None
    reported = set(_status_fields(decision.status.model_dump(mode="json", by_alias=True, exclude_none=True)))
    assert set(_leaves(_schema("nodecaches.yaml", "status"))) - reported == {"conditions.observedGeneration"}
    (pressure,) = [each for each in decision.status.conditions or () if each.type == "CapacityPressure"]
    assert (pressure.status.value, pressure.reason) == ("True", "AlmostFull")
