"""The chart's peers and gate on a real node, and a group of pods that its kubelet runs."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from e2e_support.pods import Pod
from operator_support.objects import get_condition
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.namespace import Namespace

SYSTEM = "tonnage-system"


TAINT = {"key": "tonnage.dev/not-warm", "effect": "NoSchedule"}
GATE = {"prewarm": "AllMatching", "gate": {"timeout": "4h"}}


pytestmark = pytest.mark.all_options


@pytest.fixture
def untaint(e2e: E2ECluster) -> Iterator[None]:
    """Removes the node's taints afterwards."""
    yield
    e2e.api.patch("Node", e2e.node, "", {"spec": {"taints": None}})


def test_a_peer_is_ready_without_root_reads_entries_and_writes_none(namespace: Namespace, e2e: E2ECluster) -> None:
    def has_ready_peer() -> bool:
        found = json.loads(e2e.kubectl("get", "daemonset", "tonnage-peers", "-n", SYSTEM, "-o", "json"))["status"]
        return bool(found.get("numberReady", 0) == found["desiredNumberScheduled"] == 1)

    eventually(has_ready_peer, timeout=90)
    (pod,) = e2e.release.pods("peers")

    def run(command: str) -> str:
        name = pod["metadata"]["name"]
        return e2e.kubectl("exec", "-n", SYSTEM, name, "--", "sh", "-c", f"{command} 2>&1 || true").strip()

    assert run("id -u") == "65532"
    model = namespace.create_model("warm", spec={"placement": {"prewarm": "AllMatching"}}, wait=False)
    model.wait_for_condition("Warm")
    resolved = model.status["resolved"]
    assert resolved["headersDigest"], "the loader asked for peers, found none, and reported the digest"
    folder = f"/media/memory/{namespace.name}/{model.revision}"
    assert run(f"ls {folder}/model").split()
    assert run(f"cat {folder}/.tonnage/manifest.json").startswith("{")
    assert "Read-only file system" in run(f"touch {folder}/x")
    assert run("cat /var/run/secrets/kubernetes.io/serviceaccount/token").endswith("No such file or directory")


def _taints(e2e: E2ECluster) -> list[str]:
    return [each["key"] for each in e2e.api.get("Node", e2e.node)["spec"].get("taints") or ()]


def _revisions(namespace: Namespace) -> list[str]:
    """Returns the revision that each ready server serves, as its own environment has it."""
    ready = [each for each in namespace.list_pods(labelSelector="app=web") if get_condition(each, "Ready")[0] == "True"]
    logs = "".join(Pod(namespace.e2e, each["metadata"]["name"], namespace.name).logs() for each in ready)
    return re.findall(r"^serving (\S+)", logs, re.MULTILINE)


@pytest.mark.usefixtures("untaint")
def test_a_node_takes_a_group_of_pods_when_it_is_warm_and_all_of_them_get_one_revision(
    namespace: Namespace, e2e: E2ECluster
) -> None:
    # The gate opens a node for which it knows no model.
    late = namespace.create_model(
        "late", spec={"placement": GATE, "credentials": {"secretRef": {"name": "later"}}}, wait=False
    )
    late.wait_for_status(bool, description="known to the controller")
    e2e.api.patch("Node", e2e.node, "", {"spec": {"taints": [TAINT]}})
    model = namespace.create_model("web", spec={"placement": GATE}, prefix=late.prefix, wait=False)
    model.wait_for_condition("Warm")  # its Jobs tolerate the taint
    first = model.revision
    namespace.create_deployment("web", model="web", replicas=2)

    def waiting() -> list[str]:
        found = namespace.list_pods(labelSelector="app=web")
        return [message for each in found if "untolerated taint" in (message := get_condition(each, "PodScheduled")[2])]

    eventually(lambda: len(waiting()) == 2, timeout=30)
    assert TAINT["key"] in _taints(e2e)
    named = f"{namespace.name}/late"
    eventually(lambda: named in e2e.kubectl("describe", "node", e2e.node), timeout=30)

    namespace.apply_secret("later", e2e.reader_credentials)
    eventually(lambda: TAINT["key"] not in _taints(e2e), timeout=90)
    eventually(lambda: _revisions(namespace) == [first] * 2, timeout=90)

    e2e.upload(f"{namespace.name}/second/", e2e.model_files.small)
    model.patch_spec({"source": {"s3": {"prefix": f"{namespace.name}/second/"}}})
    model.wait_for_status(lambda status: status["resolved"]["revision"] != first)
    e2e.api.patch("Deployment", "web", namespace.name, {"spec": {"replicas": 3}})
    eventually(lambda: _revisions(namespace) == [first] * 3, timeout=60)
    (kept,) = e2e.api.list("GroupRevision", namespace.name)
    assert kept["spec"]["revision"]["revision"] == first
    assert kept["spec"]["group"].startswith("ReplicaSet web-")
