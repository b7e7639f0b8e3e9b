"""Whatever is killed: everything converges, nothing is half-visible, and the status says what is."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from cluster_support import processes
from cluster_support.api import condition
from operator_support.waiting import eventually
from tonnage.contract import Outcome
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster_support.site import Site
    from cluster_support.workspace import Model, Workspace

SLOW = {"loader": {"bandwidthLimit": "32Mi"}}
"""Makes the large model take four seconds."""
WARMED_SLOWLY = {**SLOW, "placement": {"prewarm": "AllMatching"}}


def under_way(model: Model) -> None:
    """Waits until a part of the model is on the node, and demands that none of it can be seen."""

    def written() -> int:
        files = (model.entry() / ".tonnage" / "partial").rglob("*.safetensors")
        return sum(512 * path.stat().st_blocks for path in files)

    eventually(lambda: written() > 16 << 20, within=60)
    assert not model.visible(), "a half-written model can be seen"


def test_a_killed_loader_goes_on_where_it_was(space: Workspace, site: Site) -> None:
    model = space.model("large", files=site.sources.large, spec=SLOW)
    pod = space.pod(model="large")
    loader = pod.await_pids(names.LOADER_CONTAINER)[0]
    under_way(model)
    processes.kill(loader)
    assert condition(pod.body(), "Ready")[0] != "True"
    pod.until_ready()
    assert pod.restarts(names.LOADER_CONTAINER) == 1
    assert pod.restarts("server") == 0
    report = pod.report()
    assert report.outcome is Outcome.LOADED
    assert report.resumed_bytes > 8 << 20
    assert report.downloaded_bytes < report.bytes


def test_a_killed_holder_comes_back_and_the_server_never_notices(space: Workspace) -> None:
    space.model()
    pod = space.pod()
    pod.until_ready()
    (server,), (holder,) = pod.pids("server"), pod.pids(names.LOADER_CONTAINER)
    processes.kill(holder)
    pod.until(lambda body: pod.container(names.LOADER_CONTAINER, body).get("restartCount") == 1, what="a restart")
    pod.until_ready()
    assert pod.pids("server") == [server]
    assert pod.report().outcome is Outcome.HIT


@pytest.fixture
def kubelet_back(site: Site) -> Iterator[None]:
    """Sees to it that kubelet runs again."""
    yield
    site.cluster.process("kubelet").restart()
    site.api.until("Node", site.node, "", lambda node: condition(node, "Ready")[0] == "True", within=90)


@pytest.mark.usefixtures("kubelet_back")
def test_a_killed_kubelet_stops_no_load_and_is_not_mistaken_for_success(space: Workspace, site: Site) -> None:
    serving = space.model()
    pod = space.pod()
    pod.until_ready()
    server = pod.pids("server")
    model = space.model("large", files=site.sources.large, spec=WARMED_SLOWLY, wait=False)
    model.until("Resolved")
    under_way(model)
    site.cluster.process("kubelet").kill(signal.SIGKILL)
    eventually(model.visible, within=60)  # the load ends without it
    assert condition(model.body(), "Warm")[0] == "False", "nobody has said yet that it is there"
    assert condition(model.body(), "Progressing")[0] == "True"
    site.cluster.process("kubelet").restart()
    body = model.until("Warm", within=90)
    assert "failures" not in body["status"]
    assert pod.pids("server") == server
    assert serving.visible()


def test_a_pod_whose_shim_is_killed_is_started_again_and_attaches(space: Workspace, site: Site) -> None:
    space.model()
    pod = space.pod()
    before = pod.until_ready()["status"]["containerStatuses"][0]["containerID"]
    for pid in site.cluster.shim_pids(pod.uid):
        processes.kill(pid)
    body = pod.until(
        lambda body: (
            condition(body, "Ready")[0] == "True" and body["status"]["containerStatuses"][0]["containerID"] != before
        ),
        within=90,
        what="another container that is ready",
    )
    assert pod.container("server", body)["restartCount"] == 1
    assert pod.report().outcome is Outcome.HIT


def test_a_killed_controller_finds_its_way_back_into_a_load(space: Workspace, site: Site) -> None:
    model = space.model("large", files=site.sources.large, spec=WARMED_SLOWLY, wait=False)
    model.until("Resolved")
    under_way(model)
    (controller,) = site.release.pods("controller")
    processes.kill(processes.pids_of(controller["status"]["containerStatuses"][0]["containerID"])[0])
    assert condition(model.body(), "Warm")[0] == "False"
    body = model.until("Warm", within=90)
    assert "failures" not in body["status"]
    site.release.until_ready("controller")
    jobs = site.api.list("Job", space.namespace, labelSelector=f"{names.ROLE}={names.ROLE_LOAD}")
    assert {job["metadata"]["annotations"][names.ATTEMPT] for job in jobs} <= {"1"}
    pod = space.pod(model="large")
    pod.until_ready()
    assert pod.report().outcome is Outcome.HIT


@pytest.fixture
def webhook_back(site: Site) -> Iterator[None]:
    """Sees to it that webhooks run again."""
    yield
    site.release.scale("webhook", 2)


@pytest.mark.usefixtures("webhook_back")
def test_without_webhooks_pods_that_ask_wait_and_others_start(space: Workspace, site: Site) -> None:
    space.model()
    for pod in site.release.pods("webhook"):
        processes.kill(processes.pids_of(pod["status"]["containerStatuses"][0]["containerID"])[0])
    site.release.scale("webhook", 0)  # or kubelet would have them back before anybody could ask
    space.deployment("asking", replicas=1)
    plain = space.pod("plain", model="")
    plain.until_ready()
    waiting = site.api.until(
        "Deployment",
        "asking",
        space.namespace,
        lambda body: condition(body, "ReplicaFailure")[0] == "True",
        what="a failure that says why no pod is made",
    )
    assert "webhook" in condition(waiting, "ReplicaFailure")[2]
    assert [pod["metadata"]["name"] for pod in space.pods()] == ["plain"]
    site.release.scale("webhook", 2)
    site.api.until(
        "Deployment", "asking", space.namespace, lambda body: (body["status"] or {}).get("readyReplicas") == 1
    )
    (pod,) = space.pods(labelSelector="app=asking")
    assert names.INJECTED in pod["metadata"]["annotations"]


@pytest.fixture
def storage_back(site: Site) -> Iterator[None]:
    """Sees to it that the S3 server runs again."""
    yield
    site.storage.start()


@pytest.mark.usefixtures("storage_back")
def test_storage_that_goes_down_and_comes_back_is_waited_for(space: Workspace, site: Site) -> None:
    model = space.model("large", files=site.sources.large, spec=SLOW)
    pod = space.pod(model="large")
    site.put(f"{space.namespace}/late/", site.sources.small)
    under_way(model)
    site.storage.stop()
    late = space.model("late", prefix=f"{space.namespace}/late/", wait=False)
    late.until("Resolved", "False", "EndpointUnreachable", within=90)
    assert condition(late.body(), "Ready")[0] == "False"
    assert condition(pod.body(), "Ready")[0] != "True"
    assert not model.visible()
    site.storage.start()
    late.until("Ready", within=90)
    pod.until_ready(within=120)
    report = pod.report()
    assert report.outcome is Outcome.LOADED
    assert report.retries or report.resumed_bytes
