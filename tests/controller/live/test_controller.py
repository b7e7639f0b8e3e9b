"""The controller on a real control plane."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING

import pytest

from operator_support import objects
from operator_support.kubelet import Ending
from operator_support.waiting import eventually
from tonnage_operator.api import names
from tonnage_operator.telemetry import JsonFormatter

if TYPE_CHECKING:
    from operator_support.fleet import ControllerThread, Fleet
    from operator_support.kubelet import Loaders

pytestmark = pytest.mark.usefixtures("controller")


def shown_metrics(controller: ControllerThread) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{controller.controller.health_port}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def test_the_source_alone_becomes_ready(fleet: Fleet, loaders: Loaders) -> None:
    del loaders
    fleet.add_nodes("a")
    fleet.create({"placement": {"prewarm": "None"}})
    fleet.until("Ready", "True", "LoadedOnDemand")
    status = fleet.status()
    assert status["resolved"]["revision"].startswith("r-")
    assert status["observedGeneration"] == 1
    eventually(lambda: not fleet.jobs())


def test_matching_nodes_become_warm_and_kubectl_reads_like_a_dashboard(fleet: Fleet, loaders: Loaders) -> None:
    del loaders
    nodes = fleet.add_nodes("a", "b")
    fleet.create()
    fleet.until("Warm")
    fleet.until("Progressing", "False", "Idle")
    revision = fleet.status()["resolved"]["revision"]
    for node in nodes:
        assert fleet.entries(node) == {revision: "Ready"}
    columns = fleet.plane.kubectl("get", "mw", "-n", fleet.namespace).stdout.splitlines()
    assert columns[0].split() == ["NAME", "READY", "REVISION", "SIZE", "WARM", "PROGRESS", "PODS", "AGE"]
    assert columns[1].split()[:5] == ["llama", "True", revision, "2Gi", "2/2"]
    wide = fleet.plane.kubectl("get", "mw", "-n", fleet.namespace, "-o", "wide").stdout.splitlines()
    assert wide[0].split()[-4:] == ["MEDIUM", "ETA", "REASON", "SOURCE"]
    assert wide[1].split()[-1] == f"s3://{fleet.namespace}/llama/"
    caches = fleet.plane.kubectl("get", "nodecaches", nodes[0]).stdout.splitlines()
    assert caches[0].split() == [
        "NAME",
        "READY",
        "MEMORY-USED",
        "MEMORY-FREE",
        "DISK-USED",
        "ENTRIES",
        "LOADING",
        "AGE",
    ]
    assert caches[1].split()[:3] == [nodes[0], "True", "2Gi"]
    for condition in ("Ready", "Warm"):
        done = fleet.plane.kubectl("wait", f"--for=condition={condition}", "-n", fleet.namespace, "mw/llama")
        assert "condition met" in done.stdout
    told = ["Accepted", "Resolved", "LoadStarted", "LoadCompleted", "LoadCompleted", "Warm", "AllNodesWarm"]
    assert sorted(fleet.events()) == sorted(told), "each transition once"
    together = fleet.plane.kubectl("get", "tonnage", "-n", fleet.namespace).stdout
    assert "modelweights.tonnage.dev/llama" in together
    story = fleet.plane.kubectl("describe", "mw", "-n", fleet.namespace, "llama").stdout
    assert "All 2 nodes have it." in story
    assert "LoadCompleted" in story


def test_an_idle_cluster_costs_no_writes(fleet: Fleet, loaders: Loaders, controller: ControllerThread) -> None:
    del loaders
    (node,) = fleet.add_nodes("a")
    fleet.create()
    fleet.until("Warm")
    eventually(lambda: controller.controller.idle and not fleet.jobs())
    version = fleet.get()["metadata"]["resourceVersion"]
    before = controller.writes()
    # Heartbeats, as kubelets send them, and a change that means nothing to us.
    for beat in range(5):
        fleet.patch_node(node, {"metadata": {"annotations": {"beat": str(beat)}}})
        fleet.set_node_status(node)
    controller.look_at_all()
    assert controller.writes() == before
    assert fleet.get()["metadata"]["resourceVersion"] == version


def test_health_metrics_and_logs_say_what_goes_on(
    fleet: Fleet, loaders: Loaders, controller: ControllerThread, caplog: pytest.LogCaptureFixture
) -> None:
    del loaders
    caplog.set_level("INFO")
    fleet.add_nodes("a")
    fleet.create()
    fleet.until("Warm")
    address = f"http://127.0.0.1:{controller.controller.health_port}"
    for path in ("/healthz", "/readyz"):
        with urllib.request.urlopen(address + path, timeout=5) as answer:
            assert answer.status == 200

    def shown() -> bool:
        text = shown_metrics(controller)
        labels = f'{{name="llama",namespace="{fleet.namespace}"}}'
        return f"tonnage_warm_nodes{labels} 1.0" in text and f"tonnage_load_started_total{labels} 1.0" in text

    eventually(shown)
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    told = {each["message"]: each for each in lines if each.get("object") == f"{fleet.namespace}/llama"}
    assert told["Started a load job"]["revision"] == fleet.status()["resolved"]["revision"]


def test_the_spec_is_never_written(fleet: Fleet, loaders: Loaders) -> None:
    del loaders
    fleet.add_nodes("a")
    made = fleet.create()
    fleet.until("Warm")
    after = fleet.get()
    assert after["spec"] == made["spec"]
    assert after["metadata"]["generation"] == made["metadata"]["generation"]
    assert not after["metadata"].get("annotations")


def test_a_failing_node_is_named_and_recovers_by_itself(fleet: Fleet, loaders: Loaders) -> None:
    good, bad = fleet.add_nodes("good", "bad")
    said = objects.failed_report("InsufficientSpace", "Needs 2 GiB, 1 GiB is free.")
    loaders.broken[bad] = Ending(said, code=27)
    fleet.create()
    fleet.until("Degraded", "True", "NodeLoadFailed")
    fleet.until("Ready", "True")
    (failure,) = fleet.status()["failures"]
    assert (failure["node"], failure["reason"]) == (bad, "InsufficientSpace")
    eventually(lambda: fleet.status()["failures"][0]["attempts"] >= 2)
    assert fleet.status()["nodes"]["summary"] == "1/2"
    loaders.broken.clear()
    fleet.until("Warm")
    fleet.until("Degraded", "False")
    assert fleet.events().count("InsufficientSpace") == 1
    assert fleet.entries(good)


def test_an_oom_kill_is_named(fleet: Fleet, loaders: Loaders) -> None:
    (node,) = fleet.add_nodes("a")
    loaders.broken[node] = Ending(None, code=137, reason="OOMKilled")
    fleet.create()
    fleet.until("Warm", "False", "LoaderOOMKilled")


def test_deletion_empties_the_nodes_first(fleet: Fleet, loaders: Loaders, controller: ControllerThread) -> None:
    nodes = fleet.add_nodes("a", "b")
    fleet.create()
    fleet.until("Warm")
    fleet.delete()
    eventually(fleet.gone, within=25)
    assert {node for role, node in loaders.ended if role == names.ROLE_CLEANUP and node in nodes} == set(nodes)
    assert not any(fleet.entries(node) for node in nodes)
    assert "DeletionWaiting" in fleet.events()
    assert f'namespace="{fleet.namespace}"' not in shown_metrics(controller), "labels are bounded by what is there"


def test_a_namespace_with_objects_can_be_deleted(fleet: Fleet, loaders: Loaders) -> None:
    del loaders
    (node,) = fleet.add_nodes("a")
    fleet.create()
    fleet.until("Warm")
    fleet.plane.kubectl("delete", "namespace", fleet.namespace, "--timeout=40s")
    eventually(lambda: not fleet.entries(node))


def test_a_pin_moves_to_what_was_seen_and_back(fleet: Fleet, loaders: Loaders) -> None:
    fleet.add_nodes("a")
    fleet.create({"revision": {"policy": "Track", "interval": "1m"}})
    fleet.until("Warm")
    old = fleet.status()["resolved"]["revision"]
    loaders.version = "2"
    body = fleet.get()
    body["status"]["lastCheckedTime"] = "2020-01-01T00:00:00Z"
    fleet.plane.request("PUT", fleet.path() + "/status", body)
    fleet.until("UpdateAvailable", "True", "SourceChanged")
    new = fleet.status()["available"]["revision"]
    fleet.patch({"revision": {"pin": new}})
    eventually(lambda: fleet.status()["resolved"]["revision"] == new)
    fleet.until("Warm")
    assert old != new
    assert "RevisionChanged" in fleet.events()


def test_what_the_status_says_fits_the_schema(fleet: Fleet, loaders: Loaders) -> None:
    (node,) = fleet.add_nodes("a")
    loaders.broken[node] = Ending(objects.failed_report("AccessDenied"), code=10)
    fleet.create()
    fleet.until("Degraded")

    def replaced() -> bool:
        body = fleet.get()
        command = ("replace", "--validate=strict", "--subresource=status", "--dry-run=server", "-f", "-")
        answer = fleet.plane.kubectl(*command, stdin=json.dumps(body), check=False)
        assert answer.returncode == 0 or "Conflict" in answer.stderr, answer.stderr
        return answer.returncode == 0

    eventually(replaced)


def test_an_object_made_anew_under_the_same_name_starts_anew(fleet: Fleet, loaders: Loaders) -> None:
    (node,) = fleet.add_nodes("a")
    fleet.create()
    fleet.until("Warm")
    before = fleet.get()["metadata"]["uid"]
    fleet.delete()
    eventually(fleet.gone, within=25)
    loaders.version = "2"
    fleet.create()
    fleet.until("Warm")
    assert fleet.get()["metadata"]["uid"] != before
    assert list(fleet.entries(node)) == [fleet.status()["resolved"]["revision"]]
