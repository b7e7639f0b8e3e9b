"""What a tenant tries with the built-in role ``edit``: it neither decides for others nor stops the operator."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from operator_support import objects
from operator_support.harness import make_installation
from operator_support.pods import create_pod, create_resolved_model
from support.waiting import eventually
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.domain.observed.model_weights import parse_model_weights
from tonnage_operator.domain.specs import jobs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from operator_support.fake_kubelet import FakeLoaders
    from operator_support.harness import ControllerThread, OperatorHarness

Body = dict[str, Any]

CONTAINER = {"name": names.LOADER_CONTAINER, "image": "i"}
EVIL = "evil"


class Tenant:
    """A user with the role ``edit`` in one namespace."""

    def __init__(self, harness: OperatorHarness, namespace: str) -> None:
        self.harness = harness
        self.namespace = namespace
        binding = ["create", "rolebinding", "tenant", "--clusterrole=edit", "--user=tenant", "-n", namespace]
        harness.plane.kubectl(*binding)

    def create(self, body: Body) -> Body:
        """Creates an object with the tenant's rights."""
        group = "/api/v1" if body["apiVersion"] == "v1" else f"/apis/{body['apiVersion']}"
        path = f"{group}/namespaces/{self.namespace}/{body['kind'].lower()}s"
        made: Body = self.harness.plane.request("POST", path, body, user="tenant")
        return made

    def ignored(self, name: str) -> str:
        """Returns the message of the event on an object that the operator ignores, as the tenant sees it."""
        path = f"/api/v1/namespaces/{self.namespace}/events"
        items = self.harness.plane.request("GET", path, user="tenant")["items"]
        found = [each for each in items if each["involvedObject"]["name"] == name and each["reason"] == "Ignored"]
        return found[0]["message"] if found else ""


@pytest.fixture
def insider(harness: OperatorHarness, controller: ControllerThread, fake_loaders: FakeLoaders) -> Tenant:
    """A tenant in the namespace of the object itself."""
    del controller, fake_loaders
    return Tenant(harness, harness.namespace)


def _job_of(weights: Body, role: str, name: str, **annotations: str) -> Body:
    """Returns a Job that looks like the operator's, but for its signature."""
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": names.MODEL_WEIGHTS_KIND,
        "name": weights["metadata"]["name"],
        "uid": weights["metadata"]["uid"],
        "controller": True,
    }
    labels = {names.MANAGED_BY: names.MANAGER, names.ROLE: role, names.MODEL_UID: weights["metadata"]["uid"]}
    template = {"metadata": {"labels": labels}, "spec": {"restartPolicy": "Never", "containers": [CONTAINER]}}
    metadata = {"name": name, "labels": labels, "annotations": annotations, "ownerReferences": [owner]}
    spec = {"suspend": True, "template": template}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def test_jobs_that_a_tenant_makes_for_its_own_object_block_no_load(harness: OperatorHarness, insider: Tenant) -> None:
    harness.add_nodes("a", "b")
    weights = harness.create({"placement": {"maxConcurrentNodes": 1, "prewarm": "None"}})
    harness.wait_for_condition("Resolved")
    revision = harness.status()["resolved"]["revision"]
    about = {names.CACHE_KEY: revision, names.MEDIUM: "Memory", names.BOOT_ID: "boot-1", names.ATTEMPT: "99"}
    for node in ("a", "b"):
        place = {names.NODE: f"{harness.namespace}-{node}"}
        insider.create(_job_of(weights, names.ROLE_LOAD, f"forged-{node}", **about, **place))
    harness.patch({"placement": {"prewarm": "AllMatching"}})
    harness.wait_for_condition("Warm", "True", "AllNodesWarm")
    assert "signature" in eventually(lambda: insider.ignored("forged-a"))


def test_a_job_that_takes_the_name_of_ours_is_replaced(harness: OperatorHarness, insider: Tenant) -> None:
    harness.add_nodes("a")
    weights = harness.create({"suspend": True})
    ours = jobs.build_resolve_job(parse_model_weights(weights), make_installation(), round_="", attempt=1)
    squatting = insider.create(_job_of(weights, names.ROLE_RESOLVE, ours["metadata"]["name"], **{names.ATTEMPT: "1"}))
    harness.patch({"suspend": False})
    harness.wait_for_condition("Warm", "True", "AllNodesWarm")
    assert squatting["metadata"]["uid"] not in {job["metadata"]["uid"] for job in harness.jobs()}


def test_a_job_that_a_tenant_deletes_and_creates_again_decides_nothing(
    harness: OperatorHarness, insider: Tenant, fake_loaders: FakeLoaders
) -> None:
    fake_loaders.block_resolves = True
    harness.add_nodes("a")
    harness.create()
    (job,) = eventually(lambda: harness.jobs(names.ROLE_RESOLVE))
    harness.patch({"suspend": True})
    harness.wait_for_condition("Progressing", "False", "Suspended")
    place = ["job", job["metadata"]["name"], "-n", harness.namespace, "--as=tenant"]
    harness.plane.kubectl("delete", *place, "--cascade=background")
    kept = {key: job["metadata"][key] for key in ("name", "labels", "annotations", "ownerReferences")}
    template = {
        "metadata": {"annotations": job["spec"]["template"]["metadata"]["annotations"]},
        "spec": {"restartPolicy": "Never", "containers": [CONTAINER]},
    }
    spec = {"suspend": True, "template": template}
    copied = insider.create({"apiVersion": "batch/v1", "kind": "Job", "metadata": kept, "spec": spec})
    fake_loaders.block_resolves = False
    harness.patch({"suspend": False})
    harness.wait_for_condition("Warm")
    assert copied["metadata"]["uid"] not in {each["metadata"]["uid"] for each in harness.jobs()}


@pytest.fixture
def neighbor(harness: OperatorHarness, controller: ControllerThread, fake_loaders: FakeLoaders) -> Iterator[Tenant]:
    """A tenant of another namespace than the object's."""
    del controller, fake_loaders
    name = f"{harness.namespace}-{EVIL}"
    harness.plane.kubectl("create", "namespace", name)
    yield Tenant(harness, name)
    harness.plane.kubectl("delete", "pods,jobs", "--all", "-n", name, "--wait=false")


def _holding_pod(name: str, node: str, keys: list[str], weights: Body) -> Body:
    held = [
        {
            "container": names.LOADER_CONTAINER,
            "namespace": weights["metadata"]["namespace"],
            "name": weights["metadata"]["name"],
            "uid": weights["metadata"]["uid"],
            "revision": "r-1",
            "key": key,
            "bytes": 10**30,
        }
        for key in keys
    ]
    annotations = {names.ENTRIES: json.dumps(held), names.INJECTED: "1"}
    spec = {"nodeName": node, "containers": [{"name": "c", "image": "i"}], "initContainers": [CONTAINER]}
    labels = {names.ROLE: names.ROLE_INJECTED}
    metadata = {"name": name, "annotations": annotations, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def test_invented_entries_of_a_pod_reach_no_record_and_no_job(harness: OperatorHarness, neighbor: Tenant) -> None:
    (node,) = harness.add_nodes("a")
    weights = harness.create({"placement": {"prewarm": "None"}})
    harness.wait_for_condition("Resolved")
    several = {
        "many": [f"r-{index:012x}" for index in range(1001)],
        "paths": ["../../etc", "../../../root"],
        "few": [f"r-{index:012x}" for index in range(150)],
        "large": ["r-1"],
    }
    for name, keys in several.items():
        neighbor.create(_holding_pod(name, node, keys, weights))
    harness.patch({"placement": {"prewarm": "AllMatching"}})
    harness.wait_for_condition("Warm", "True", "AllNodesWarm")
    assert list(harness.entry_states(node)) == [harness.status()["resolved"]["revision"]]
    assert "did not admit it" in eventually(lambda: neighbor.ignored("many"))
    harness.plane.kubectl("delete", "pods", "--all", "-n", neighbor.namespace, "--grace-period=0", "--force")
    harness.patch({"suspend": True})
    harness.wait_for_condition("Progressing", "False", "Suspended")
    assert list(harness.entry_states(node)) == [harness.status()["resolved"]["revision"]]
    cleanups = harness.plane.request("GET", f"/apis/batch/v1/namespaces/{neighbor.namespace}/jobs")["items"]
    assert not cleanups


@pytest.mark.usefixtures("webhook")
def test_the_entries_of_an_admitted_pod_are_held_and_those_of_its_copy_are_not(
    harness: OperatorHarness, insider: Tenant, controller: ControllerThread
) -> None:
    create_resolved_model(harness)
    admitted = create_pod(harness, {names.MODEL: "llama"})
    assert admitted["metadata"]["annotations"][names.SIGNATURE]
    copied = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "copied",
            "labels": admitted["metadata"]["labels"],
            "annotations": admitted["metadata"]["annotations"],
        },
        "spec": {"containers": [{"name": "c", "image": "i"}], "initContainers": [CONTAINER]},
    }
    other = insider.create(copied)

    def held(pod: Body) -> int | None:
        found = controller.app.state.pods.get(pod["metadata"]["uid"])
        return len(found.held_entries) if found else None

    assert eventually(lambda: controller.call_in_loop(lambda: held(admitted))) == 1
    assert eventually(lambda: controller.call_in_loop(lambda: held(other)) == 0)


def test_a_report_of_a_pod_that_a_tenant_attaches_to_a_job_is_ignored(
    harness: OperatorHarness, insider: Tenant, fake_loaders: FakeLoaders
) -> None:
    fake_loaders.block_resolves = True
    harness.add_nodes("a")
    harness.create()
    (job,) = eventually(lambda: harness.jobs(names.ROLE_RESOLVE))
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "attached",
            "labels": job["spec"]["template"]["metadata"]["labels"],
            "ownerReferences": [{**owner, "controller": True}],
        },
        "spec": {"containers": [CONTAINER]},
    }
    insider.create(pod)
    forged = contract.termination_message(objects.resolved_report("forged", bucket=harness.namespace)).decode()
    state = {"terminated": {"exitCode": 0, "reason": "Completed", "message": forged}}
    status = {"phase": "Succeeded", "containerStatuses": [{"name": names.LOADER_CONTAINER, "state": state}]}
    path = f"/api/v1/namespaces/{harness.namespace}/pods/attached/status"
    harness.plane.request("PATCH", path, {"status": status}, content_type="application/merge-patch+json")
    fake_loaders.block_resolves = False
    harness.wait_for_condition("Warm")
    honest = objects.resolved_report("1", bucket=harness.namespace).revision
    assert harness.status()["resolved"]["revision"] == honest
