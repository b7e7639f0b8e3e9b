"""The controller on a real control plane."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING

import pytest

from operator_support import objects
from operator_support.fake_kubelet import Termination
from support.waiting import eventually
from tonnage_operator.api import names
from tonnage_operator.telemetry import JsonFormatter

if TYPE_CHECKING:
    from operator_support.fake_kubelet import FakeLoaders
    from operator_support.harness import ControllerThread, OperatorHarness

pytestmark = pytest.mark.usefixtures("controller")


def shown_metrics(controller: ControllerThread) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{controller.app.health_port}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def test_an_object_with_only_a_source_becomes_ready(harness: OperatorHarness, fake_loaders: FakeLoaders) -> None:
    del fake_loaders
    harness.add_nodes("a")
    harness.create({"placement": {"prewarm": "None"}})
    harness.wait_for_condition("Ready", "True", "LoadedOnDemand")
    status = harness.status()
    assert status["resolved"]["revision"].startswith("r-")
    assert status["observedGeneration"] == 1
    eventually(lambda: not harness.jobs())


def test_matching_nodes_become_warm_and_kubectl_shows_it(harness: OperatorHarness, fake_loaders: FakeLoaders) -> None:
    del fake_loaders
    nodes = harness.add_nodes("a", "b")
    harness.create()
    harness.wait_for_condition("Warm")
    harness.wait_for_condition("Progressing", "False", "Idle")
    revision = harness.status()["resolved"]["revision"]
    for node in nodes:
        assert harness.entry_states(node) == {revision: "Ready"}
    columns = harness.plane.kubectl("get", "mw", "-n", harness.namespace).stdout.splitlines()
    assert columns[0].split() == ["NAME", "READY", "REVISION", "SIZE", "WARM", "PROGRESS", "PODS", "AGE"]
    assert columns[1].split()[:5] == ["llama", "True", revision, "2Gi", "2/2"]
    wide = harness.plane.kubectl("get", "mw", "-n", harness.namespace, "-o", "wide").stdout.splitlines()
    assert wide[0].split()[-4:] == ["MEDIUM", "ETA", "REASON", "SOURCE"]
    assert wide[1].split()[-1] == f"s3://{harness.namespace}/llama/"
    caches = harness.plane.kubectl("get", "nodecaches", nodes[0]).stdout.splitlines()
    assert caches[0].split() == [
        "NAME",
        "READY",
        "MEMORY-USED",
        "MEMORY-RESERVED",
        "MEMORY-FREE",
        "DISK-USED",
        "ENTRIES",
        "LOADING",
        "AGE",
    ]
    assert caches[1].split()[:3] == [nodes[0], "True", "2Gi"]
    for condition in ("Ready", "Warm"):
        done = harness.plane.kubectl("wait", f"--for=condition={condition}", "-n", harness.namespace, "mw/llama")
        assert "condition met" in done.stdout
    expected_reasons = ["Accepted", "Resolved", "LoadStarted", "LoadCompleted", "LoadCompleted", "Warm", "AllNodesWarm"]
    assert sorted(harness.event_reasons()) == sorted(expected_reasons), "each transition has one event"
    together = harness.plane.kubectl("get", "tonnage", "-n", harness.namespace).stdout
    assert "modelweights.tonnage.dev/llama" in together
    description = harness.plane.kubectl("describe", "mw", "-n", harness.namespace, "llama").stdout
    assert "All 2 nodes are warm." in description
    assert "LoadCompleted" in description


def test_an_idle_controller_writes_nothing_and_each_job_has_been_deleted_once(
    harness: OperatorHarness, fake_loaders: FakeLoaders, controller: ControllerThread
) -> None:
    del fake_loaders
    eventually(lambda: controller.app.idle)
    created, deleted = (controller.count_requests(verb, resource="jobs") for verb in ("create", "delete"))
    node, *_ = harness.add_nodes("a", "b", "c", "d")
    harness.create()
    harness.wait_for_condition("Warm")
    eventually(lambda: controller.app.idle and not harness.jobs())
    assert controller.count_requests("create", resource="jobs") - created == 5
    assert controller.count_requests("delete", resource="jobs") - deleted == 5
    version = harness.get()["metadata"]["resourceVersion"]
    before = controller.count_writes()
    # Heartbeats as kubelets send them, and an irrelevant change.
    for beat in range(5):
        harness.patch_node(node, {"metadata": {"annotations": {"beat": str(beat)}}})
        harness.set_node_status(node)
    controller.reconcile_all()
    assert controller.count_writes() == before
    assert harness.get()["metadata"]["resourceVersion"] == version


def test_health_metrics_and_logs_are_served(
    harness: OperatorHarness, fake_loaders: FakeLoaders, controller: ControllerThread, caplog: pytest.LogCaptureFixture
) -> None:
    del fake_loaders
    caplog.set_level("INFO")
    harness.add_nodes("a")
    harness.create()
    harness.wait_for_condition("Warm")
    address = f"http://127.0.0.1:{controller.app.health_port}"
    for path in ("/healthz", "/readyz"):
        with urllib.request.urlopen(address + path, timeout=5) as answer:
            assert answer.status == 200

    def shown() -> bool:
        text = shown_metrics(controller)
        labels = f'{{name="llama",namespace="{harness.namespace}"}}'
        return f"tonnage_warm_nodes{labels} 1.0" in text and f"tonnage_load_started_total{labels} 1.0" in text

    eventually(shown)
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    logged = {each["message"]: each for each in lines if each.get("object") == f"{harness.namespace}/llama"}
    assert logged["Created a load Job"]["revision"] == harness.status()["resolved"]["revision"]


def test_the_spec_is_never_written(harness: OperatorHarness, fake_loaders: FakeLoaders) -> None:
    del fake_loaders
    harness.add_nodes("a")
    made = harness.create()
    harness.wait_for_condition("Warm")
    after = harness.get()
    assert after["spec"] == made["spec"]
    assert after["metadata"]["generation"] == made["metadata"]["generation"]
    assert not after["metadata"].get("annotations")


def test_a_failing_node_is_named_and_recovers_by_itself(harness: OperatorHarness, fake_loaders: FakeLoaders) -> None:
    good, bad = harness.add_nodes("good", "bad")
    report = objects.failed_report("InsufficientSpace", "Needs 2 GiB, 1 GiB is free.")
    fake_loaders.load_failures[bad] = Termination(report, exit_code=27)
    harness.create()
    harness.wait_for_condition("Degraded", "True", "NodeLoadFailed")
    harness.wait_for_condition("Ready", "True")
    (failure,) = harness.status()["failures"]
    assert (failure["node"], failure["reason"]) == (bad, "InsufficientSpace")
    eventually(lambda: harness.status()["failures"][0]["attempts"] >= 2)
    assert harness.status()["nodes"]["summary"] == "1/2"
    fake_loaders.load_failures.clear()
    harness.wait_for_condition("Warm")
    harness.wait_for_condition("Degraded", "False")
    assert harness.event_reasons().count("InsufficientSpace") == 1
    assert harness.entry_states(good)


def test_an_oom_kill_is_named(harness: OperatorHarness, fake_loaders: FakeLoaders) -> None:
    (node,) = harness.add_nodes("a")
    fake_loaders.load_failures[node] = Termination(None, exit_code=137, reason="OOMKilled")
    harness.create()
    harness.wait_for_condition("Warm", "False", "LoaderOOMKilled")


def test_deletion_evicts_the_entries_from_nodes_first(
    harness: OperatorHarness, fake_loaders: FakeLoaders, controller: ControllerThread
) -> None:
    nodes = harness.add_nodes("a", "b")
    harness.create()
    harness.wait_for_condition("Warm")
    harness.delete()
    eventually(harness.is_gone, timeout=25)
    assert {node for role, node in fake_loaders.terminated if role == names.ROLE_CLEANUP and node in nodes} == set(
        nodes
    )
    assert not any(harness.entry_states(node) for node in nodes)
    assert "DeletionWaiting" in harness.event_reasons()
    assert f'namespace="{harness.namespace}"' not in shown_metrics(controller), "series of a deleted object are removed"


def test_a_namespace_with_objects_can_be_deleted(harness: OperatorHarness, fake_loaders: FakeLoaders) -> None:
    del fake_loaders
    (node,) = harness.add_nodes("a")
    harness.create()
    harness.wait_for_condition("Warm")
    harness.plane.kubectl("delete", "namespace", harness.namespace, "--timeout=40s")
    eventually(lambda: not harness.entry_states(node))


def test_a_pin_selects_another_revision_and_back(harness: OperatorHarness, fake_loaders: FakeLoaders) -> None:
    harness.add_nodes("a")
    harness.create({"revision": {"policy": "Track", "interval": "1m"}})
    harness.wait_for_condition("Warm")
    old = harness.status()["resolved"]["revision"]
    fake_loaders.version = "2"
    body = harness.get()
    body["status"]["lastCheckedTime"] = "2020-01-01T00:00:00Z"
    harness.plane.request("PUT", harness.object_path() + "/status", body)
    harness.wait_for_condition("UpdateAvailable", "True", "SourceChanged")
    new = harness.status()["available"]["revision"]
    harness.patch({"revision": {"pin": new}})
    eventually(lambda: harness.status()["resolved"]["revision"] == new)
    harness.wait_for_condition("Warm")
    assert old != new
    assert "RevisionChanged" in harness.event_reasons()


def test_the_status_conforms_to_the_schema(harness: OperatorHarness, fake_loaders: FakeLoaders) -> None:
    (node,) = harness.add_nodes("a")
    fake_loaders.load_failures[node] = Termination(objects.failed_report("AccessDenied"), exit_code=10)
    harness.create()
    harness.wait_for_condition("Degraded")

    def replaced() -> bool:
        body = harness.get()
        path = (
            f"/apis/tonnage.dev/v1alpha1/namespaces/{harness.namespace}/modelweights/{body['metadata']['name']}/status"
        )
        refusal = harness.plane.refusal("PUT", f"{path}?dryRun=All&fieldValidation=Strict", body)
        assert not refusal or "the object has been modified" in refusal, refusal
        return not refusal

    eventually(replaced)


def test_an_object_recreated_under_the_same_name_starts_over(
    harness: OperatorHarness, fake_loaders: FakeLoaders
) -> None:
    (node,) = harness.add_nodes("a")
    harness.create()
    harness.wait_for_condition("Warm")
    before = harness.get()["metadata"]["uid"]
    harness.delete()
    eventually(harness.is_gone, timeout=25)
    fake_loaders.version = "2"
    harness.create()
    harness.wait_for_condition("Warm")
    assert harness.get()["metadata"]["uid"] != before
    assert list(harness.entry_states(node)) == [harness.status()["resolved"]["revision"]]
