"""Which objects the controller's state relates to each other."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from operator_support import objects
from tonnage_operator.api import names
from tonnage_operator.controller.state import ControllerState
from tonnage_operator.domain.specs import jobs


def _pod(job: dict[str, Any], name: str, *, namespace: str, created: str) -> dict[str, Any]:
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    labels = {names.ROLE: "resolve", names.MODEL_UID: objects.UID}
    metadata = {
        "name": name,
        "namespace": namespace,
        "uid": f"uid-{name}",
        "creationTimestamp": created,
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
    cluster.pods.put(_pod(job, "impostor", namespace="elsewhere", created="2026-01-02T00:00:00Z"))
    snapshot = cluster.snapshot(record, record.weights, datetime.now(UTC))
    assert snapshot.pods["job"].name == "own"
