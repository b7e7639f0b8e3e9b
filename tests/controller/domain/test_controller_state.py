"""Which objects the controller's state relates to each other."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import pytest

from operator_support import objects
from tonnage_operator.api import names
from tonnage_operator.api.status import SeenRevision
from tonnage_operator.controller.state import ControllerState
from tonnage_operator.domain import signing
from tonnage_operator.domain.modelweights.revisions import parse_resolve_report
from tonnage_operator.domain.observed.node import parse_node
from tonnage_operator.domain.specs import jobs


def _pod(job: dict[str, Any], name: str, *, namespace: str, created: str) -> dict[str, Any]:
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    owner["controller"] = True
    labels = {names.ROLE: "resolve", names.MODEL_UID: objects.UID}
    metadata = {
        "name": name,
        "namespace": namespace,
        "uid": f"uid-{name}",
        "creationTimestamp": created,
        "annotations": dict(job["spec"]["template"]["metadata"]["annotations"]),
        "resourceVersion": "1",
    }
    return {"metadata": {**metadata, "labels": labels, "ownerReferences": [owner]}, "spec": {}, "status": {}}


def test_a_pod_of_another_namespace_is_not_a_jobs_pod_even_if_it_names_it_as_owner() -> None:
    cluster = ControllerState(objects.INSTALLATION)
    cluster.weights.put(objects.modelweights_manifest(resourceVersion="1"))
    record = cluster.weights.get(objects.UID)
    assert record
    assert record.weights
    job = jobs.build_resolve_job(record.weights, objects.INSTALLATION, round_="", attempt=1)
    job["metadata"] |= {"uid": "job", "resourceVersion": "1"}
    cluster.jobs.put(job)
    cluster.pods.put(_pod(job, "own", namespace="serving", created="2026-01-01T00:00:00Z"))
    cluster.pods.put(_pod(job, "impostor", namespace="elsewhere", created="2025-01-01T00:00:00Z"))
    snapshot = cluster.snapshot(record, record.weights, datetime.now(UTC))
    assert snapshot.pods["job"].name == "own"


def _state() -> ControllerState:
    state = ControllerState(objects.INSTALLATION)
    state.weights.put(objects.modelweights_manifest(resourceVersion="1"))
    state.nodes.put({**objects.node("n0"), "metadata": {**objects.node("n0")["metadata"], "resourceVersion": "1"}})
    return state


def _load_job() -> dict[str, Any]:
    weights = objects.modelweights()
    seen = parse_resolve_report(objects.resolved_report(), weights, now="2026-01-01T00:00:00Z")
    assert isinstance(seen, SeenRevision)
    node = parse_node(objects.node("n0"))
    job = jobs.build_load_job(weights, seen, objects.INSTALLATION, node=node, attempt=1)
    job["metadata"] |= {"uid": "job", "resourceVersion": "1"}
    return job


def _signed(job: dict[str, Any]) -> dict[str, Any]:
    """Signs a Job as the operator would; a tenant has no key."""
    job["metadata"]["annotations"][names.SIGNATURE] = objects.KEYS.sign(*signing.job_parts(job["metadata"]))
    return job


def _seen_jobs(state: ControllerState) -> tuple[list[str], list[str]]:
    """Returns the Jobs in the decisions about the object and about the node."""
    record, node = state.weights.get(objects.UID), state.node("n0")
    assert record
    assert record.weights
    assert node
    now = datetime.now(UTC)
    snapshot, node_snapshot = state.snapshot(record, record.weights, now), state.node_snapshot(node, now)
    return [job.name for job in snapshot.jobs], [job.name for job in node_snapshot.jobs]


def test_a_load_job_counts_for_its_object_and_its_node() -> None:
    state = _state()
    state.jobs.put(_load_job())
    name = _load_job()["metadata"]["name"]
    assert _seen_jobs(state) == ([name], [name])


@pytest.mark.parametrize(
    ("namespace", "owners"),
    [
        ("evil", None),
        ("evil", []),
        ("serving", []),
        ("serving", [{"uid": objects.UID, "kind": "ModelWeights", "name": "llama"}]),
        ("serving", [{"uid": "another", "kind": "ModelWeights", "name": "other", "controller": True}]),
    ],
    ids=["elsewhere", "elsewhere, not owned", "not owned", "owned, not controlled", "owned by another object"],
)
def test_a_forged_job_decides_nothing(namespace: str, owners: list[dict[str, Any]] | None) -> None:
    state, forged = _state(), copy.deepcopy(_load_job())
    forged["metadata"]["namespace"] = namespace
    if owners is not None:
        forged["metadata"]["ownerReferences"] = owners
    state.jobs.put(_signed(forged))
    assert _seen_jobs(state) == ([], [])


def test_a_job_of_an_object_that_does_not_exist_decides_nothing() -> None:
    state, forged = _state(), _load_job()
    forged["metadata"]["labels"][names.MODEL_UID] = "unknown"
    forged["metadata"]["ownerReferences"][0]["uid"] = "unknown"
    state.jobs.put(_signed(forged))
    assert _seen_jobs(state) == ([], [])


@pytest.mark.parametrize(("namespace", "counts"), [("tonnage-system", True), ("evil", False)])
def test_a_cleanup_job_counts_in_the_operators_namespace_alone(namespace: str, counts: bool) -> None:
    state, job = _state(), _load_job()
    job["metadata"]["namespace"] = namespace
    job["metadata"]["labels"] = {names.ROLE: names.ROLE_CLEANUP, names.MANAGED_BY: names.MANAGER}
    del job["metadata"]["ownerReferences"]
    state.jobs.put(_signed(job))
    assert bool(_seen_jobs(state)[1]) is counts


@pytest.mark.parametrize(
    ("source", "accepted"),
    [
        ({"prefix": "llama/"}, True),
        ({"prefix": "other/"}, False),
        ({"prefix": None, "keys": ["llama/model-0.tensors", "llama/model-1.tensors", "llama/config.json"]}, True),
        ({"prefix": None, "keys": ["llama/model-0.tensors"]}, False),
    ],
)
def test_a_revision_holds_only_objects_that_the_source_names(source: dict[str, Any], accepted: bool) -> None:
    weights = objects.modelweights({"source": {"s3": source}})
    found = parse_resolve_report(objects.resolved_report(), weights, now="2026-01-01T00:00:00Z")
    assert isinstance(found, SeenRevision) is accepted
