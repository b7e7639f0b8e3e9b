"""How long bytes stay: revisions beside each other, entries that make room, claims, copies of a pod's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from operator_support import objects
from operator_support.fleet import Fleet
from operator_support.kubelet import Ending
from operator_support.pods import create_pod, delete_pod, make_claim, revision_of, volumes
from operator_support.waiting import eventually
from tonnage_operator.api import names

if TYPE_CHECKING:
    from operator_support.kubelet import Loaders

AUTOMATIC = {"revision": {"policy": "Track", "interval": "1m", "update": "Automatic"}}
FULL = Ending(objects.failed_report("InsufficientSpace", "Needs 2 GiB, 1 GiB is free."), code=27)


@pytest.mark.usefixtures("controller", "webhook")
def test_an_automatic_update_goes_beside_the_old_revision_and_pods_keep_theirs(fleet: Fleet, loaders: Loaders) -> None:
    (node,) = fleet.add_nodes("a")
    fleet.create(AUTOMATIC)
    fleet.until("Warm")
    early = create_pod(fleet, nodeSelector={"fleet": fleet.namespace})
    eventually(lambda: fleet.status()["consumers"]["pods"] == 1)
    loaders.version, loaders.hold = "2", True
    fleet.look_again()
    fleet.until("UpdateAvailable", "True", "SourceChanged")
    fleet.until("Progressing", "True", "Updating")
    old, new = fleet.status()["resolved"]["revision"], fleet.status()["available"]["revision"]
    assert fleet.condition("Ready")[0] == "True", "the old one serves while the new one is loaded"
    assert revision_of(create_pod(fleet, query="?dryRun=All")) == old
    loaders.hold = False
    eventually(lambda: fleet.status()["resolved"]["revision"] == new)
    fleet.until("Warm")
    assert revision_of(early) == old
    assert revision_of(create_pod(fleet, query="?dryRun=All")) == new
    assert fleet.entries(node) == {old: "Ready", new: "Ready"}
    delete_pod(fleet, early)
    eventually(lambda: fleet.entries(node) == {new: "Ready"})
    assert [role for role, where in loaders.ended if where == node].count(names.ROLE_CLEANUP) == 1


@pytest.mark.usefixtures("controller", "webhook", "loaders")
def test_a_deleted_object_lets_pods_keep_their_bytes(fleet: Fleet) -> None:
    (node,) = fleet.add_nodes("a")
    fleet.create()
    fleet.until("Warm")
    pod = create_pod(fleet, nodeSelector={"fleet": fleet.namespace})
    eventually(lambda: fleet.status()["consumers"]["pods"] == 1)
    fleet.delete()
    eventually(fleet.gone)
    assert list(fleet.entries(node).values()) == ["Ready"]
    delete_pod(fleet, pod)
    eventually(lambda: not fleet.entries(node))


@pytest.mark.usefixtures("controller")
def test_an_evictable_entry_outlives_its_object_until_its_room_is_needed(fleet: Fleet, loaders: Loaders) -> None:
    (node,) = fleet.add_nodes("a")
    fleet.create({"cache": {"retention": "Evictable"}}, name="old")
    fleet.until("Warm", name="old")
    (kept,) = fleet.entries(node)
    fleet.delete("old")
    eventually(lambda: fleet.gone("old"))
    assert fleet.entries(node) == {kept: "Ready"}
    loaders.broken[node] = FULL
    fleet.create({"source": {"s3": {"bucket": f"{fleet.namespace}-new"}}}, name="new")
    fleet.until("Warm", "False", "InsufficientSpace", name="new")
    eventually(lambda: (names.ROLE_CLEANUP, node) in loaders.ended)
    loaders.broken.clear()
    fleet.until("Warm", name="new")
    assert kept not in fleet.entries(node)


CLAIM = {"cache": {"delivery": "PersistentVolumeClaim", "claimName": "weights"}}


@pytest.mark.usefixtures("controller", "webhook")
def test_a_claim_is_loaded_once_mounted_by_pods_and_emptied_at_the_end(fleet: Fleet, loaders: Loaders) -> None:
    fleet.add_nodes("a", "b")
    make_claim(fleet)
    fleet.create(CLAIM)
    fleet.until("Warm")
    assert fleet.status()["nodes"]["summary"] == "1/1"
    (load,) = fleet.jobs("load")
    assert load["metadata"]["annotations"][names.NODE] == "pvc/weights"
    volume = volumes(create_pod(fleet, query="?dryRun=All"))["tonnage-cache"]
    assert volume == {"name": "tonnage-cache", "persistentVolumeClaim": {"claimName": "weights"}}
    entry = fleet.status()["resolved"]["revision"]
    before = len(loaders.ended)
    fleet.delete()
    eventually(fleet.gone, within=25)
    assert [role for role, node in loaders.ended[before:] if fleet.namespace in node] == [names.ROLE_CLEANUP]
    assert entry


@pytest.mark.usefixtures("controller", "loaders")
def test_a_claim_that_is_gone_does_not_hold_the_namespace_of_its_object(fleet: Fleet) -> None:
    fleet.add_nodes("a")
    make_claim(fleet)
    fleet.create(CLAIM)
    fleet.until("Warm")
    fleet.plane.kubectl("delete", "namespace", fleet.namespace, "--timeout=40s")


@pytest.mark.usefixtures("controller", "loaders", "webhook")
def test_a_copy_of_the_pods_own_leaves_nothing_on_nodes_and_nothing_to_wait_for(fleet: Fleet) -> None:
    (node,) = fleet.add_nodes("a")
    fleet.create({"cache": {"delivery": "EmptyDir", "medium": "Memory"}, "placement": {"prewarm": "None"}})
    fleet.until("Ready", "True", "LoadedOnDemand")
    pod = create_pod(fleet, nodeSelector={"fleet": fleet.namespace})
    assert volumes(pod)["tonnage-cache"]["emptyDir"]["medium"] == "Memory"
    eventually(lambda: fleet.status()["consumers"]["pods"] == 1)
    assert not fleet.entries(node)
    assert not fleet.get()["metadata"].get("finalizers")
    fleet.delete()
    assert fleet.gone()


@pytest.mark.usefixtures("controller", "loaders")
def test_a_job_that_gets_no_pod_is_told_with_what_may_forbid_it(fleet: Fleet) -> None:
    """A missing ServiceAccount, a quota, and pod security, which forbids just the host path."""
    plane = fleet.plane
    quota, guarded = Fleet(plane, f"{fleet.namespace}-quota"), Fleet(plane, f"{fleet.namespace}-guarded")
    for each in (quota, guarded):
        plane.kubectl("create", "namespace", each.namespace)
    fleet.add_nodes("a")
    plane.kubectl("create", "quota", "none", "--hard=pods=0", "-n", quota.namespace)
    plane.kubectl("label", "namespace", guarded.namespace, "pod-security.kubernetes.io/enforce=baseline")
    here = {"placement": {"nodeSelector": {"fleet": fleet.namespace}}}
    fleet.create({"credentials": {"serviceAccountName": "nobody"}})
    quota.create(here)
    guarded.create(here)
    for each in (fleet, quota):
        each.until("Resolved", "False", "PodNotCreated", within=35)
        assert each.condition("Ready") == ("False", "PodNotCreated")
    guarded.until("Warm", "False", "PodNotCreated", within=35)
    assert guarded.condition("Resolved")[0] == "True"
