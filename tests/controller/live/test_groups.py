"""Pods of one group get one revision, on a real API server with the real controllers of Deployments and Jobs."""

from __future__ import annotations

import concurrent.futures
import json
import urllib.error
from typing import TYPE_CHECKING, Any

import pytest

from operator_support import controllers, objects
from operator_support.harness import GROUP_PATH
from operator_support.injection import find_loader
from operator_support.pods import create_resolved_model, delete_pod, pod_template, revision_of
from support.waiting import eventually
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.domain.modelweights.revisions import parse_resolve_report
from tonnage_operator.domain.observed.held_entries import parse_held_entries
from tonnage_operator.domain.observed.model_weights import parse_model_weights
from tonnage_operator.webhook import group_revisions

if TYPE_CHECKING:
    from collections.abc import Callable

    from operator_support.fake_kubelet import FakeLoaders
    from operator_support.harness import OperatorHarness

MERGE = "application/merge-patch+json"
pytestmark = pytest.mark.usefixtures("webhook")


def _move_on(harness: OperatorHarness, version: str) -> str:
    """Sets another revision of the source as the one in use, as the controller does, and returns it."""
    body = harness.get()
    report = objects.resolved_report(version, bucket=harness.namespace)
    seen = parse_resolve_report(report, parse_model_weights(body), now="2026-01-01T00:00:00Z")
    body["status"] = {"resolved": seen.model_dump(mode="json", by_alias=True, exclude_none=True)}  # type: ignore[union-attr]
    harness.plane.request("PUT", harness.object_path() + "/status", body)
    return str(body["status"]["resolved"]["revision"])


def _create(harness: OperatorHarness, kind: str, name: str, spec: dict[str, Any], path: str) -> dict[str, Any]:
    version = path.removeprefix("/apis/")
    body = {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}
    made: dict[str, Any] = harness.plane.request("POST", f"{path}/namespaces/{harness.namespace}/{kind.lower()}s", body)
    return made


def _workload(kind: str) -> dict[str, Any]:
    labels = {"app": "owner"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    spec: dict[str, Any] = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
    return spec | ({"serviceName": "s"} if kind == "StatefulSet" else {})


def _owner_uid(harness: OperatorHarness, kind: str, name: str) -> str:
    """Creates a ReplicaSet or StatefulSet without pods of its own, and returns its uid."""
    return str(_create(harness, kind, name, _workload(kind), "/apis/apps/v1")["metadata"]["uid"])


def _pod(
    harness: OperatorHarness, metadata: dict[str, Any], *, query: str = "", node: str = "", **annotations: str
) -> dict[str, Any]:
    """Creates a pod as its controller would, and returns it as admitted."""
    body = {"apiVersion": "v1", "kind": "Pod", **pod_template()}
    body["spec"] |= {"nodeName": node} if node else {}
    body["metadata"] = {**metadata, "annotations": {names.MODEL: "llama", **annotations}}
    body["metadata"].pop("name", None)
    body["metadata"].setdefault("generateName", "p-")
    path = f"/api/v1/namespaces/{harness.namespace}/pods{query}"
    for _ in range(3):
        try:
            made: dict[str, Any] = harness.plane.request("POST", path, body)
        except urllib.error.HTTPError as error:
            if error.code != 500:  # a review took too long on a busy machine: controllers try again, too
                raise
            error.close()
        else:
            return made
    raise AssertionError(f"no pod of {metadata} could be created")


def _refusal(create: Callable[[], object]) -> str:
    with pytest.raises(urllib.error.HTTPError) as caught:
        create()
    with caught.value as answer:
        message: str = json.loads(answer.read())["message"]
    return message


def test_fifty_pods_at_once_get_one_revision_though_the_model_moves_on_and_its_source_is_replaced(
    harness: OperatorHarness,
) -> None:
    first = create_resolved_model(harness)
    uid = _owner_uid(harness, "ReplicaSet", "web-5d9c")
    metadata = controllers.replica_set_pod("web-5d9c", uid)
    assert revision_of(_pod(harness, metadata, query="?dryRun=All")) == first
    assert not harness.group_revisions(), "a dry run keeps nothing"
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        begun = [pool.submit(_pod, harness, metadata) for _ in range(25)]
        second = _move_on(harness, "2")
        begun += [pool.submit(_pod, harness, metadata) for _ in range(25)]
        revisions = {revision_of(each.result()) for each in begun}
    (kept,) = harness.group_revisions()
    assert revisions == {kept["spec"]["revision"]["revision"]}
    assert kept["spec"]["group"] == "ReplicaSet web-5d9c"
    others = {first, second} - revisions

    third = _move_on(harness, "3")
    assert revision_of(_pod(harness, metadata)) in revisions
    assert revision_of(_pod(harness, metadata, query="?dryRun=All")) in revisions, "a dry run shows what it will be"
    assert revision_of(_pod(harness, metadata, **{names.SAME_REVISION: "false"})) == third
    assert others

    harness.patch({"source": {"s3": {"bucket": "elsewhere"}}})
    late = _pod(harness, metadata)
    assert revision_of(late) in revisions
    env = {each["name"]: each.get("value", "") for each in find_loader(late)["env"]}
    (source,) = contract.decode_plan(env["TONNAGE_PLAN"].replace("$$", "$")).sources
    assert isinstance(source, contract.S3Source)
    assert source.bucket == harness.namespace, "the source that has the revision"
    assert source.objects, "which may have moved on, too"
    assert "is not resolved" in _refusal(lambda: _pod(harness, controllers.replica_set_pod("web-2", "other")))
    assert len(harness.group_revisions()) == 1, "a pod that is denied decides nothing"

    path = f"/apis/apps/v1/namespaces/{harness.namespace}/replicasets/web-5d9c"
    harness.plane.request("DELETE", path)
    eventually(lambda: not harness.group_revisions(), timeout=60)


def test_a_deployment_gets_another_revision_with_another_template(harness: OperatorHarness) -> None:
    first = create_resolved_model(harness)
    template = pod_template()
    harness.plane.kubectl("create", "serviceaccount", "default", "-n", harness.namespace, check=False)
    spec = {"replicas": 2, "selector": {"matchLabels": template["metadata"]["labels"]}, "template": template}
    _create(harness, "Deployment", "web", spec, "/apis/apps/v1")
    pods = f"/api/v1/namespaces/{harness.namespace}/pods"

    def revisions() -> list[str]:
        return sorted(revision_of(each) for each in harness.plane.request("GET", pods)["items"])

    eventually(lambda: revisions() == [first] * 2)
    second = _move_on(harness, "2")
    deployment = f"/apis/apps/v1/namespaces/{harness.namespace}/deployments/web"
    harness.plane.request("PATCH", deployment, {"spec": {"replicas": 4}}, content_type=MERGE)
    eventually(lambda: revisions() == [first] * 4)
    restart = {"spec": {"template": {"metadata": {"annotations": {"restarted": "now"}}}}}
    harness.plane.request("PATCH", deployment, restart, content_type=MERGE)
    eventually(lambda: second in revisions())
    assert {each["spec"]["revision"]["revision"] for each in harness.group_revisions()} == {first, second}
    harness.plane.request("DELETE", deployment)
    eventually(lambda: not harness.group_revisions(), timeout=60)


CONTROLLERS: dict[str, Callable[[str], tuple[dict[str, Any], dict[str, Any]]]] = {
    "JobSet": lambda uid: (
        controllers.job_set_pod("set", "set-uid", "driver", uid),
        controllers.job_set_pod("set", "set-uid", "workers", "other"),
    ),
    "RayCluster": lambda _: (controllers.ray_pod("ray", "y1", "head"), controllers.ray_pod("ray", "y1", "worker")),
    "PyTorchJob": lambda _: (
        controllers.training_pod("train", "t1", "master"),
        controllers.training_pod("train", "t1", "worker"),
    ),
    "LeaderWorkerSet": lambda uid: (
        controllers.leader_pod("vllm", uid, "a", 0),
        controllers.worker_pod("vllm", "the workers' own", "a", 1),
    ),
    "StatefulSet": lambda uid: (
        controllers.stateful_set_pod("vllm", uid, "a", 0),
        controllers.stateful_set_pod("vllm", uid, "a", 1),
    ),
}


def test_pods_of_other_controllers_get_one_revision_for_each_group(harness: OperatorHarness) -> None:
    first = create_resolved_model(harness)
    uid = _owner_uid(harness, "StatefulSet", "vllm")
    pods = {kind: make(uid) for kind, make in CONTROLLERS.items()}
    assert {revision_of(_pod(harness, early)) for early, _ in pods.values()} == {first}
    second = _move_on(harness, "2")
    later = {kind: revision_of(_pod(harness, late)) for kind, (_, late) in pods.items()}
    assert later == dict.fromkeys(CONTROLLERS, first)
    assert sorted(each["spec"]["group"].partition(" ")[0] for each in harness.group_revisions()) == sorted(CONTROLLERS)
    assert revision_of(_pod(harness, controllers.stateful_set_pod("vllm", uid, "b", 0))) == second
    harness.plane.request("DELETE", f"{GROUP_PATH}/namespaces/{harness.namespace}/grouprevisions")


def test_a_false_owner_keeps_a_revision_nowhere_else_and_not_for_long(
    harness: OperatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels and owner references are whatever a pod's author writes."""
    create_resolved_model(harness)
    pod = _pod(harness, controllers.replica_set_pod("web-1", "of-another-namespace"))
    (held,) = parse_held_entries(pod["metadata"]["annotations"][names.ENTRIES])
    assert held.group.startswith("replicaset-web-1-")
    eventually(lambda: not harness.group_revisions(), timeout=60)
    monkeypatch.setattr(group_revisions, "MAX_IN_NAMESPACE", 1)
    uid = _owner_uid(harness, "StatefulSet", "vllm")
    _pod(harness, controllers.stateful_set_pod("vllm", uid, "a"))
    text = _refusal(lambda: _pod(harness, controllers.stateful_set_pod("vllm", uid, "b")))
    assert "has 1 GroupRevisions, and no more are created" in text
    assert revision_of(_pod(harness, controllers.stateful_set_pod("vllm", uid, "a", 1)))
    harness.plane.request("DELETE", f"/apis/apps/v1/namespaces/{harness.namespace}/statefulsets/vllm")
    eventually(lambda: not harness.group_revisions(), timeout=60)


@pytest.mark.usefixtures("controller")
def test_the_revision_of_a_group_is_not_evicted_while_it_has_pods_on_another_node(
    harness: OperatorHarness, fake_loaders: FakeLoaders
) -> None:
    here, there = harness.add_nodes("a", "b")
    harness.create({"revision": {"policy": "Track", "interval": "1m", "update": "Automatic"}})
    harness.wait_for_condition("Warm")
    metadata = controllers.ray_pod("ray", "y1", "worker")
    pod = _pod(harness, metadata, node=here)
    old = revision_of(pod)
    eventually(lambda: harness.status()["consumers"]["pods"] == 1)
    fake_loaders.version = "2"
    harness.expire_check_interval()
    eventually(lambda: harness.status()["resolved"]["revision"] != old)
    new = harness.status()["resolved"]["revision"]
    harness.wait_for_condition("Warm")
    assert harness.entry_states(there) == {old: "Ready", new: "Ready"}
    assert revision_of(_pod(harness, metadata, query="?dryRun=All")) == old
    delete_pod(harness, pod)
    eventually(lambda: harness.status()["consumers"]["pods"] == 0)
    assert harness.entry_states(there) == {old: "Ready", new: "Ready"}, "the whole group may be restarted"
    harness.plane.request("DELETE", f"{GROUP_PATH}/namespaces/{harness.namespace}/grouprevisions")
