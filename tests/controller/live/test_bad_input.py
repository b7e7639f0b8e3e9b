"""User errors and missing objects get a condition that names them, and other objects continue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from operator_support import objects
from operator_support.fake_kubelet import Termination
from operator_support.harness import ControllerThread, admin_client_config, make_installation
from operator_support.pods import create_pvc
from support.waiting import eventually
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from operator_support.fake_kubelet import FakeLoaders
    from operator_support.harness import OperatorHarness

pytestmark = pytest.mark.usefixtures("controller")


@pytest.mark.parametrize(
    "message",
    ['secret "s3-reader" not found', "couldn't find key AWS_SECRET_ACCESS_KEY in Secret serving/s3-reader"],
    ids=["missing", "without a key"],
)
def test_a_missing_secret_is_named_and_the_job_continues_once_it_exists(
    harness: OperatorHarness, fake_loaders: FakeLoaders, message: str
) -> None:
    harness.add_nodes("a")
    fake_loaders.waiting_messages[names.ROLE_RESOLVE] = message
    harness.create({"credentials": {"secretRef": {"name": "s3-reader"}}})
    harness.wait_for_condition("Resolved", "False", "CredentialsMissing")
    (condition,) = [each for each in harness.status()["conditions"] if each["type"] == "Resolved"]
    assert message in condition["message"]
    fake_loaders.waiting_messages.clear()
    harness.wait_for_condition("Warm")


@pytest.fixture
def unreadable_objects(harness: OperatorHarness) -> Iterator[None]:
    """A pod and a Job that anyone with the role ``edit`` in any namespace can create."""
    nested = "[" * 20_000
    container = {"name": "c", "image": "i"}
    pod = {
        "metadata": {
            "name": "unreadable",
            "labels": {names.ROLE: "x"},
            "annotations": {names.ENTRIES: f'[{{"zz": {nested}}}]'},
        },
        "spec": {"containers": [container]},
    }
    job = {
        "metadata": {
            "name": "unreadable",
            "labels": {names.MANAGED_BY: names.MANAGER, names.ROLE: names.ROLE_LOAD},
            "annotations": {names.ATTEMPT: "abc", names.MEDIUM: "Bogus"},
        },
        "spec": {"suspend": True, "template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }
    paths = {"/api/v1/namespaces/default/pods": pod, "/apis/batch/v1/namespaces/default/jobs": job}
    for path, body in paths.items():
        harness.plane.request("POST", path, body)
    yield
    for path in paths:
        harness.plane.request("DELETE", f"{path}/unreadable")


def _ignored_kinds(harness: OperatorHarness) -> set[str]:
    """Returns the kinds of the unreadable objects that have an event, once both have one."""
    items = harness.plane.request("GET", "/api/v1/namespaces/default/events")["items"]
    about = [each["involvedObject"] for each in items if each["reason"] == "Ignored"]
    found = {each["kind"] for each in about if each["name"] == "unreadable"}
    return found if len(found) == 2 else set()


@pytest.mark.usefixtures("unreadable_objects", "fake_loaders")
def test_unreadable_objects_of_a_tenant_stop_neither_a_running_nor_a_starting_controller(
    harness: OperatorHarness,
) -> None:
    harness.add_nodes("a")
    harness.create()
    harness.wait_for_condition("Warm")
    assert eventually(lambda: _ignored_kinds(harness)) == {"Job", "Pod"}, "their owners can see why"
    with ControllerThread(admin_client_config(harness.plane), make_installation()) as fresh:
        assert fresh.call_in_loop(fresh.app.ready.is_set)
        assert fresh.call_in_loop(lambda: fresh.app.state.jobs.unreadable) == 1


def test_a_missing_bucket_is_reported_with_a_remedy_and_other_objects_continue(
    harness: OperatorHarness, fake_loaders: FakeLoaders
) -> None:
    harness.add_nodes("a")
    harness.create(name="fine")
    harness.wait_for_condition("Warm", name="fine")
    fake_loaders.resolve_failure = Termination(
        objects.failed_report("BucketNotFound", "There is no bucket models."), exit_code=12
    )
    harness.create()
    harness.wait_for_condition("Resolved", "False", "BucketNotFound")
    assert harness.condition("Ready") == ("False", "BucketNotFound")
    (resolved,) = [each for each in harness.status()["conditions"] if each["type"] == "Resolved"]
    assert "There is no bucket models. Check bucket, endpoint and region" in resolved["message"]
    assert harness.condition("Ready", "fine") == ("True", "Warm")
    assert harness.event_reasons().count("BucketNotFound") >= 1
    fake_loaders.resolve_failure = None
    harness.wait_for_condition("Warm")


def test_an_object_replaced_under_a_pinned_revision_is_reported_and_a_new_resolve_fixes_it(
    harness: OperatorHarness, fake_loaders: FakeLoaders
) -> None:
    (node,) = harness.add_nodes("a")
    fake_loaders.load_failures[node] = Termination(
        objects.failed_report("SourceChanged", "model.tensors has another ETag."), exit_code=18
    )
    harness.create()
    harness.wait_for_condition("Warm", "False", "SourceChanged")
    (warm,) = [each for each in harness.status()["conditions"] if each["type"] == "Warm"]
    assert f"{node}: SourceChanged: model.tensors has another ETag." in warm["message"]
    pinned = harness.status()["resolved"]["revision"]
    fake_loaders.load_failures.clear()
    fake_loaders.version = "2"
    harness.patch({"files": {"exclude": ["nothing"]}})
    eventually(lambda: harness.status()["resolved"]["revision"] != pinned)
    harness.wait_for_condition("Warm")


def test_a_model_becomes_ready_in_a_restricted_namespace_without_host_paths(
    harness: OperatorHarness, fake_loaders: FakeLoaders
) -> None:
    del fake_loaders
    harness.plane.kubectl("label", "namespace", harness.namespace, "pod-security.kubernetes.io/enforce=restricted")
    harness.add_nodes("a")
    create_pvc(harness)
    harness.create({"cache": {"delivery": "EmptyDir"}, "placement": {"prewarm": "None"}}, name="own")
    harness.create({"cache": {"delivery": "PersistentVolumeClaim", "claimName": "weights"}})
    harness.wait_for_condition("Ready", name="own")
    harness.wait_for_condition("Warm")
