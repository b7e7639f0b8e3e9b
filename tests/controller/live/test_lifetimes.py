"""Lifetimes of entries: updates, deletion, eviction for space, claims, and copies in emptyDir volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from operator_support import objects
from operator_support.fake_kubelet import Termination
from operator_support.harness import OperatorHarness
from operator_support.pods import create_pod, create_pvc, delete_pod, revision_of, volumes_by_name
from support.waiting import eventually
from tonnage_operator.api import names

if TYPE_CHECKING:
    from operator_support.fake_kubelet import FakeLoaders

AUTOMATIC = {"revision": {"policy": "Track", "interval": "1m", "update": "Automatic"}}
FULL = Termination(objects.failed_report("InsufficientSpace", "Needs 2 GiB, 1 GiB is free."), exit_code=27)


@pytest.mark.usefixtures("controller", "webhook")
def test_an_automatic_update_keeps_the_old_revision_for_pods_that_use_it(
    harness: OperatorHarness, fake_loaders: FakeLoaders
) -> None:
    (node,) = harness.add_nodes("a")
    harness.create(AUTOMATIC)
    harness.wait_for_condition("Warm")
    early = create_pod(harness, nodeSelector={"test-namespace": harness.namespace})
    eventually(lambda: harness.status()["consumers"]["pods"] == 1)
    fake_loaders.version, fake_loaders.block_loads = "2", True
    harness.expire_check_interval()
    harness.wait_for_condition("UpdateAvailable", "True", "SourceChanged")
    harness.wait_for_condition("Progressing", "True", "Updating")
    old, new = harness.status()["resolved"]["revision"], harness.status()["available"]["revision"]
    assert harness.condition("Ready")[0] == "True", "the old revision is in use while the new one is loaded"
    assert revision_of(create_pod(harness, query="?dryRun=All")) == old
    fake_loaders.block_loads = False
    eventually(lambda: harness.status()["resolved"]["revision"] == new)
    harness.wait_for_condition("Warm")
    assert revision_of(early) == old
    assert revision_of(create_pod(harness, query="?dryRun=All")) == new
    assert harness.entry_states(node) == {old: "Ready", new: "Ready"}
    delete_pod(harness, early)
    eventually(lambda: harness.entry_states(node) == {new: "Ready"})
    assert [role for role, where in fake_loaders.terminated if where == node].count(names.ROLE_CLEANUP) == 1


@pytest.mark.usefixtures("controller", "webhook", "fake_loaders")
def test_entries_of_a_deleted_object_stay_while_pods_use_them(harness: OperatorHarness) -> None:
    (node,) = harness.add_nodes("a")
    harness.create()
    harness.wait_for_condition("Warm")
    pod = create_pod(harness, nodeSelector={"test-namespace": harness.namespace})
    eventually(lambda: harness.status()["consumers"]["pods"] == 1)
    harness.delete()
    eventually(harness.is_gone)
    assert list(harness.entry_states(node).values()) == ["Ready"]
    delete_pod(harness, pod)
    eventually(lambda: not harness.entry_states(node))


@pytest.mark.usefixtures("controller")
def test_an_evictable_entry_outlives_its_object_until_its_space_is_needed(
    harness: OperatorHarness, fake_loaders: FakeLoaders
) -> None:
    (node,) = harness.add_nodes("a")
    harness.create({"cache": {"retention": "Evictable"}}, name="old")
    harness.wait_for_condition("Warm", name="old")
    (kept,) = harness.entry_states(node)
    harness.delete("old")
    eventually(lambda: harness.is_gone("old"))
    assert harness.entry_states(node) == {kept: "Ready"}
    fake_loaders.load_failures[node] = FULL
    harness.create({"source": {"s3": {"bucket": f"{harness.namespace}-new"}}}, name="new")
    harness.wait_for_condition("Warm", "False", "InsufficientSpace", name="new")
    eventually(lambda: (names.ROLE_CLEANUP, node) in fake_loaders.terminated)
    fake_loaders.load_failures.clear()
    harness.wait_for_condition("Warm", name="new")
    assert kept not in harness.entry_states(node)


CLAIM = {"cache": {"delivery": "PersistentVolumeClaim", "claimName": "weights"}}


@pytest.mark.usefixtures("controller", "webhook")
def test_a_pvc_is_loaded_once_mounted_by_pods_and_emptied_at_the_end(
    harness: OperatorHarness, fake_loaders: FakeLoaders
) -> None:
    harness.add_nodes("a", "b")
    create_pvc(harness)
    harness.create(CLAIM)
    harness.wait_for_condition("Warm")
    assert harness.status()["nodes"]["summary"] == "1/1"
    (load,) = harness.jobs("load")
    assert load["metadata"]["annotations"][names.NODE] == "pvc/weights"
    volume = volumes_by_name(create_pod(harness, query="?dryRun=All"))["tonnage-cache"]
    assert volume == {"name": "tonnage-cache", "persistentVolumeClaim": {"claimName": "weights"}}
    entry = harness.status()["resolved"]["revision"]
    before = len(fake_loaders.terminated)
    harness.delete()
    eventually(harness.is_gone, timeout=25)
    assert [role for role, node in fake_loaders.terminated[before:] if harness.namespace in node] == [
        names.ROLE_CLEANUP
    ]
    assert entry


@pytest.mark.usefixtures("controller", "fake_loaders")
def test_a_deleted_pvc_does_not_block_the_namespace_of_its_object(harness: OperatorHarness) -> None:
    harness.add_nodes("a")
    create_pvc(harness)
    harness.create(CLAIM)
    harness.wait_for_condition("Warm")
    harness.plane.kubectl("delete", "namespace", harness.namespace, "--timeout=40s")


@pytest.mark.usefixtures("controller", "fake_loaders", "webhook")
def test_a_copy_in_an_empty_dir_leaves_nothing_on_nodes_and_delays_no_deletion(harness: OperatorHarness) -> None:
    (node,) = harness.add_nodes("a")
    harness.create({"cache": {"delivery": "EmptyDir", "medium": "Memory"}, "placement": {"prewarm": "None"}})
    harness.wait_for_condition("Ready", "True", "LoadedOnDemand")
    pod = create_pod(harness, nodeSelector={"test-namespace": harness.namespace})
    assert volumes_by_name(pod)["tonnage-cache"]["emptyDir"]["medium"] == "Memory"
    eventually(lambda: harness.status()["consumers"]["pods"] == 1)
    assert not harness.entry_states(node)
    assert not harness.get()["metadata"].get("finalizers")
    harness.delete()
    assert harness.is_gone()


@pytest.mark.usefixtures("controller", "fake_loaders")
def test_a_job_without_a_pod_is_reported_with_likely_causes(harness: OperatorHarness) -> None:
    """Causes: a missing ServiceAccount, a quota, and Pod Security that forbids host paths."""
    plane = harness.plane
    quota, guarded = (
        OperatorHarness(plane, f"{harness.namespace}-quota"),
        OperatorHarness(plane, f"{harness.namespace}-guarded"),
    )
    for each in (quota, guarded):
        plane.kubectl("create", "namespace", each.namespace)
    harness.add_nodes("a")
    plane.kubectl("create", "quota", "none", "--hard=pods=0", "-n", quota.namespace)
    plane.kubectl("label", "namespace", guarded.namespace, "pod-security.kubernetes.io/enforce=baseline")
    here = {"placement": {"nodeSelector": {"test-namespace": harness.namespace}}}
    harness.create({"credentials": {"serviceAccountName": "missing"}})
    quota.create(here)
    guarded.create(here)
    for each in (harness, quota):
        each.wait_for_condition("Resolved", "False", "PodNotCreated", timeout=35)
        assert each.condition("Ready") == ("False", "PodNotCreated")
    guarded.wait_for_condition("Warm", "False", "PodNotCreated", timeout=35)
    assert guarded.condition("Resolved")[0] == "True"
