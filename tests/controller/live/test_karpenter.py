"""The gate with Karpenter itself, which adds nodes that no kubelet runs: its provider for KWOK.

`hack/kubernetes/build.sh karpenter` builds it in some minutes; without that the test is skipped.
"""

from __future__ import annotations

import contextlib
import urllib.error
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from local_cluster import programs
from local_cluster.process import Process
from operator_support import objects
from operator_support.background_thread import BackgroundThread
from operator_support.harness import ControllerThread, GateThread, admin_client_config, make_installation
from operator_support.pods import create_pod, create_resolved_model
from operator_support.webhook_thread import WebhookThread
from support.ports import free_ports
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from operator_support.control_plane import ControlPlane
    from operator_support.fake_kubelet import FakeLoaders
    from operator_support.harness import OperatorHarness

pytestmark = pytest.mark.timeout(180)

KEY = "tonnage.dev/not-warm"
POOLS = "/apis/karpenter.sh/v1/nodepools"
CLAIMS = "/apis/karpenter.sh/v1/nodeclaims"
CLASSES = "/apis/karpenter.kwok.sh/v1alpha1/kwoknodeclasses"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
REQUIRED = {"placement": {"scheduling": "Require", "gate": {"timeout": "10m"}}}
MERGE = "application/merge-patch+json"
HALF = [{"name": "server", "image": "vllm", "resources": {"requests": {"cpu": "5"}}}]
"""More than half of the only instance type."""


class NodeStatuses(BackgroundThread):
    """Sets what a kubelet would set on each of Karpenter's nodes: that it is ready, and its boot."""

    def __init__(self, plane: ControlPlane) -> None:
        super().__init__()
        self._plane = plane

    def run(self) -> None:
        while not self.stop_requested.wait(0.2):
            for node in self._plane.request("GET", "/api/v1/nodes?labelSelector=karpenter.sh%2Fnodepool")["items"]:
                self._make_ready(node)

    def _make_ready(self, node: dict[str, Any]) -> None:
        status = {
            "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": "set by the test"}],
            "nodeInfo": {"bootID": "boot-1"},
        }
        metadata, taints = node["metadata"], node["spec"].get("taints") or []
        kept = [each for each in taints if each["key"] != "node.kubernetes.io/not-ready"]
        path = f"/api/v1/nodes/{metadata['name']}"
        try:
            if not node["status"].get("conditions"):
                self._plane.request("PATCH", f"{path}/status", {"status": status}, content_type=MERGE)
            elif kept != taints:
                version = {"resourceVersion": metadata["resourceVersion"]}
                self._plane.request("PATCH", path, {"metadata": version, "spec": {"taints": kept}}, content_type=MERGE)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in {404, 409}:  # Karpenter has changed or deleted it meanwhile
                raise


@pytest.fixture
def karpenter(control_plane: ControlPlane, harness: OperatorHarness, tmp_path: Path) -> Iterator[Process]:
    """Karpenter, with a pool for the namespace's pods whose nodes are born with the startup taint."""
    if programs.missing_programs(["karpenter"]):
        pytest.skip("Karpenter isn't built: hack/kubernetes/build.sh karpenter")
    program = programs.find_or_build(["karpenter"])["karpenter"]
    paths = sorted(program.with_name("karpenter-crds").glob("*.yaml"))
    for path in paths:
        control_plane.request("POST", CRDS, yaml.safe_load(path.read_text()))
    eventually(lambda: all(_is_served(control_plane, each) for each in (POOLS, CLAIMS, CLASSES)))
    _create_pool(harness)
    metrics, health = free_ports(2)
    running = Process(
        "karpenter",
        [program, f"--metrics-port={metrics}", f"--health-probe-port={health}", "--batch-idle-duration=200ms"],
        tmp_path / "karpenter.log",
        environment={
            "KUBECONFIG": str(control_plane.kubeconfig),
            "DISABLE_LEADER_ELECTION": "true",
            "SYSTEM_NAMESPACE": "default",
        },
    )
    running.start()
    with NodeStatuses(control_plane):
        yield running
    running.stop()
    _remove_all(control_plane, CLAIMS, POOLS, CLASSES, "/api/v1/nodes?labelSelector=karpenter.sh%2Fnodepool")
    for path in paths:
        control_plane.request("DELETE", f"{CRDS}/{yaml.safe_load(path.read_text())['metadata']['name']}")


def _remove_all(plane: ControlPlane, *paths: str) -> None:
    """Deletes all objects, and removes the finalizers, which nothing acts on any more."""
    for path in paths:
        items = plane.request("GET", path)["items"]
        plane.request("DELETE", path)
        for each in items:
            with contextlib.suppress(urllib.error.HTTPError):
                name = f"{path.partition('?')[0]}/{each['metadata']['name']}"
                plane.request("PATCH", name, {"metadata": {"finalizers": None}}, content_type=MERGE)


def _is_served(plane: ControlPlane, path: str) -> bool:
    try:
        plane.request("GET", path)
    except OSError:
        return False
    return True


def _create_pool(harness: OperatorHarness) -> None:
    kind = {"apiVersion": "karpenter.kwok.sh/v1alpha1", "kind": "KWOKNodeClass", "metadata": {"name": "default"}}
    harness.plane.request("POST", CLASSES, kind)
    instance = {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["c-8x-amd64-linux"]}
    template = {
        "metadata": {"labels": {"test-namespace": harness.namespace}},
        "spec": {
            "requirements": [instance],
            "nodeClassRef": {"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "default"},
            "startupTaints": [{"key": KEY, "effect": "NoSchedule"}],
            "expireAfter": "Never",
        },
    }
    disruption = {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "Never"}
    pool = {"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": "gpu"}}
    harness.plane.request("POST", POOLS, {**pool, "spec": {"template": template, "disruption": disruption}})


@pytest.fixture
def operator(control_plane: ControlPlane, operator_namespace: str, tmp_path: Path) -> Iterator[None]:
    """Controller, gate and webhook."""
    del operator_namespace
    installation = make_installation(gate={"enabled": True, "taints": [KEY]})
    credentials = admin_client_config(control_plane)
    with (
        ControllerThread(credentials, installation),
        GateThread(admin_client_config(control_plane), installation),
        WebhookThread(admin_client_config(control_plane), installation, tmp_path) as webhook,
    ):
        webhook.register(control_plane)
        yield
        webhook.unregister(control_plane)


def _node_of(harness: OperatorHarness, pod: dict[str, Any]) -> str:
    path = f"/api/v1/namespaces/{harness.namespace}/pods/{pod['metadata']['name']}"
    found: str = harness.plane.request("GET", path)["spec"].get("nodeName", "")
    return found


@pytest.mark.usefixtures("operator", "karpenter")
def test_karpenter_adds_a_node_for_each_pod_that_waits_and_pods_run_there_when_it_is_warm(
    harness: OperatorHarness, fake_loaders: FakeLoaders
) -> None:
    fake_loaders.block_loads = True
    create_resolved_model(harness, objects.deep_merge(REQUIRED, {"placement": {"prewarm": "AllMatching"}}))

    def claims() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = harness.plane.request("GET", CLAIMS)["items"]
        return found

    def initialized() -> int:
        return sum(objects.get_condition(each, "Initialized")[0] == "True" for each in claims())

    def load_pods() -> list[str]:
        nodes = [(each.get("status") or {}).get("nodeName", "") for each in claims()]
        return [harness.loading_pod_name(node) for node in nodes if node]

    first = create_pod(harness, containers=HALF)
    eventually(lambda: len(load_pods()) == 1 and all(load_pods()), timeout=60)  # Jobs tolerate the startup taint
    second = create_pod(harness, containers=HALF)
    eventually(lambda: len(load_pods()) == 2 and all(load_pods()), timeout=60)
    assert (_node_of(harness, first), _node_of(harness, second)) == ("", "")
    assert initialized() == 0, "Karpenter counts a node once its startup taints are gone"
    fake_loaders.block_loads = False
    eventually(lambda: _node_of(harness, first) and _node_of(harness, second), timeout=60)
    assert _node_of(harness, first) != _node_of(harness, second)
    eventually(lambda: initialized() == 2, timeout=30)
    assert len(claims()) == 2, "it added no node while the others were being warmed"
