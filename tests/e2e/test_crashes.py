"""Killed processes: the cluster converges, no partial entry is visible, and the status is correct."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from e2e_support import processes
from operator_support.objects import get_condition
from support.waiting import eventually
from tonnage.contract import Outcome
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.namespace import Namespace

WARMED = {"placement": {"prewarm": "AllMatching"}}


def test_a_killed_loader_resumes(namespace: Namespace, e2e: E2ECluster) -> None:
    model = namespace.create_model("large", files=e2e.model_files.large)
    with model.hold_rest():
        pod = namespace.create_pod(model="large")
        loader = pod.wait_for_pids(names.LOADER_CONTAINER)[0]
        model.wait_for_partial_load()
        processes.kill(loader)
        assert get_condition(pod.get(), "Ready")[0] != "True"
    pod.wait_ready()
    assert pod.restart_count(names.LOADER_CONTAINER) == 1
    assert pod.restart_count("server") == 0
    report = pod.last_report()
    assert report.outcome is Outcome.LOADED
    assert report.resumed_bytes > 8 << 20
    assert report.downloaded_bytes < report.bytes


@pytest.mark.prepared
def test_a_killed_holder_is_restarted_without_effect_on_the_server(namespace: Namespace) -> None:
    namespace.create_model()
    pod = namespace.create_pod()
    pod.wait_ready()
    (server,), (holder,) = pod.pids("server"), pod.pids(names.HOLDER_CONTAINER)
    processes.kill(holder)
    pod.wait_for(
        lambda body: pod.container_status(names.HOLDER_CONTAINER, body).get("restartCount") == 1,
        description="a restart",
    )
    pod.wait_ready()
    assert pod.pids("server") == [server]
    assert pod.restart_count(names.LOADER_CONTAINER) == 0


@pytest.fixture
def restore_kubelet(e2e: E2ECluster) -> Iterator[None]:
    """Restarts kubelet afterwards, unless the test has: pods with probes are not ready until a new one has probed."""
    yield
    kubelet = e2e.cluster.process("kubelet")
    if not kubelet.is_running:
        kubelet.restart()
    e2e.api.wait_for("Node", e2e.node, "", lambda node: get_condition(node, "Ready")[0] == "True", timeout=90)
    e2e.release.wait_ready("webhook")


@pytest.mark.prepared
@pytest.mark.disturbs
@pytest.mark.usefixtures("restore_kubelet")
def test_a_load_completes_without_kubelet_and_counts_when_it_is_back(namespace: Namespace, e2e: E2ECluster) -> None:
    serving = namespace.create_model()
    pod = namespace.create_pod()
    pod.wait_ready()
    server = pod.pids("server")
    model = namespace.create_model("large", files=e2e.model_files.large, spec=WARMED, wait=False)
    with model.hold_rest():
        model.wait_for_condition("Resolved")
        model.wait_for_partial_load()
        e2e.cluster.process("kubelet").kill(signal.SIGKILL)
    eventually(model.visible_files, timeout=60)  # the load completes without kubelet
    assert get_condition(model.get(), "Warm")[0] == "False", "warm without a result of the load"
    assert get_condition(model.get(), "Progressing")[0] == "True"
    e2e.cluster.process("kubelet").restart()
    body = model.wait_for_condition("Warm", timeout=90)
    assert "failures" not in body["status"]
    assert pod.pids("server") == server
    assert serving.visible_files()


@pytest.mark.prepared
def test_a_pod_whose_shim_is_killed_is_restarted_and_attaches(namespace: Namespace, e2e: E2ECluster) -> None:
    namespace.create_model()
    pod = namespace.create_pod()
    before = pod.wait_ready()["status"]["containerStatuses"][0]["containerID"]
    for pid in e2e.cluster.shim_pids(pod.uid):
        processes.kill(pid)
    body = pod.wait_for(
        lambda body: (
            get_condition(body, "Ready")[0] == "True"
            and body["status"]["containerStatuses"][0]["containerID"] != before
        ),
        timeout=90,
        description="another container that is ready",
    )
    assert pod.container_status("server", body)["restartCount"] == 1
    assert pod.last_report().outcome is Outcome.HIT


@pytest.mark.disturbs
def test_a_restarted_controller_continues_with_a_running_load(namespace: Namespace, e2e: E2ECluster) -> None:
    model = namespace.create_model("large", files=e2e.model_files.large, spec=WARMED, wait=False)
    with model.hold_rest():
        model.wait_for_condition("Resolved")
        model.wait_for_partial_load()
        (controller,) = e2e.release.pods("controller")
        processes.kill(processes.container_pids(controller["status"]["containerStatuses"][0]["containerID"])[0])
        assert get_condition(model.get(), "Warm")[0] == "False"
    body = model.wait_for_condition("Warm", timeout=90)
    assert "failures" not in body["status"]
    e2e.release.wait_ready("controller")
    jobs = e2e.api.list("Job", namespace.name, labelSelector=f"{names.ROLE}={names.ROLE_LOAD}")
    assert {job["metadata"]["annotations"][names.ATTEMPT] for job in jobs} <= {"1"}
    pod = namespace.create_pod(model="large")
    pod.wait_ready()
    assert pod.last_report().outcome is Outcome.HIT


@pytest.fixture
def restore_webhook(e2e: E2ECluster) -> Iterator[None]:
    """Restarts the webhooks afterwards."""
    yield
    e2e.release.scale("webhook", 2)


@pytest.mark.prepared
@pytest.mark.disturbs
@pytest.mark.usefixtures("restore_webhook")
def test_without_webhooks_annotated_pods_wait_and_others_start(namespace: Namespace, e2e: E2ECluster) -> None:
    namespace.create_model()
    for pod in e2e.release.pods("webhook"):
        processes.kill(processes.container_pids(pod["status"]["containerStatuses"][0]["containerID"])[0])
    e2e.release.scale("webhook", 0)  # kubelet would restart killed ones too soon
    namespace.create_deployment("asking", replicas=1)
    plain = namespace.create_pod("plain", model="")
    plain.wait_ready()
    waiting = e2e.api.wait_for(
        "Deployment",
        "asking",
        namespace.name,
        lambda body: get_condition(body, "ReplicaFailure")[0] == "True",
        description="ReplicaFailure",
    )
    assert "webhook" in get_condition(waiting, "ReplicaFailure")[2]
    assert [pod["metadata"]["name"] for pod in namespace.list_pods()] == ["plain"]
    e2e.release.scale("webhook", 2)
    e2e.api.wait_for(
        "Deployment", "asking", namespace.name, lambda body: (body["status"] or {}).get("readyReplicas") == 1
    )
    (pod,) = namespace.list_pods(labelSelector="app=asking")
    assert names.INJECTED in pod["metadata"]["annotations"]


@pytest.fixture
def restore_storage(e2e: E2ECluster) -> Iterator[None]:
    """Restarts the S3 server afterwards."""
    yield
    e2e.storage.start()


@pytest.mark.disturbs
@pytest.mark.usefixtures("restore_storage")
def test_loads_wait_for_storage_that_is_down(namespace: Namespace, e2e: E2ECluster) -> None:
    model = namespace.create_model("large", files=e2e.model_files.large)
    e2e.upload(f"{namespace.name}/late/", e2e.model_files.small)
    with model.hold_rest():
        pod = namespace.create_pod(model="large")
        model.wait_for_partial_load()
        e2e.storage.stop()
    late = namespace.create_model("late", prefix=f"{namespace.name}/late/", wait=False)
    late.wait_for_condition("Resolved", "False", "EndpointUnreachable", timeout=90)
    assert get_condition(late.get(), "Ready")[0] == "False"
    assert get_condition(pod.get(), "Ready")[0] != "True"
    assert not model.visible_files()
    e2e.storage.start()
    late.wait_for_condition("Ready", timeout=90)
    pod.wait_ready(timeout=120)
    report = pod.last_report()
    assert report.outcome is Outcome.LOADED
    assert report.retries or report.resumed_bytes
