"""Nodes that are added, deleted, cordoned, drained, rebooted, relabelled or dead, on a real control plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.waiting import eventually
from tonnage_operator.api import names

if TYPE_CHECKING:
    from operator_support.fake_kubelet import FakeLoaders
    from operator_support.harness import OperatorHarness

pytestmark = pytest.mark.usefixtures("controller")


def test_added_deleted_and_rebooted_nodes_are_reconciled(harness: OperatorHarness, fake_loaders: FakeLoaders) -> None:
    (first,) = harness.add_nodes("a")
    harness.create()
    harness.wait_for_condition("Warm")
    (second,) = harness.add_nodes("b")
    eventually(lambda: harness.status()["nodes"]["summary"] == "2/2")
    fake_loaders.block_loads = True
    harness.set_node_status(second, boot_id="boot-2")
    eventually(lambda: harness.status()["nodes"]["summary"] == "1/2")
    eventually(lambda: list(harness.entry_states(second).values()) == ["Loading"])
    fake_loaders.block_loads = False
    harness.wait_for_condition("Warm")
    harness.patch_node(second, {"spec": {"unschedulable": True}})
    eventually(lambda: harness.status()["nodes"]["summary"] == "1/1")
    harness.delete_node(second)
    eventually(lambda: not harness.nodecache_status(second))
    harness.patch_node(first, {"metadata": {"labels": {"test-namespace": None}}})
    harness.wait_for_condition("Warm", "False", "NoMatchingNodes")
    harness.delete_node(first)


def test_a_node_drained_during_a_load_loads_again_when_it_is_uncordoned(
    harness: OperatorHarness, fake_loaders: FakeLoaders
) -> None:
    good, drained = harness.add_nodes("good", "drained")
    fake_loaders.block_loads = True
    harness.create()
    pod = eventually(lambda: harness.loading_pod_name(drained))
    harness.patch_node(drained, {"spec": {"unschedulable": True}})
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    harness.plane.request("POST", f"/api/v1/namespaces/{harness.namespace}/pods/{pod}/eviction", eviction)
    fake_loaders.block_loads = False
    harness.wait_for_condition("Warm")
    assert harness.status()["nodes"]["summary"] == "1/1"
    assert harness.condition("Degraded")[0] == "False", "a drain is not a failure"
    harness.patch_node(drained, {"spec": {"unschedulable": False}})
    eventually(lambda: harness.status()["nodes"]["summary"] == "2/2", timeout=45)
    assert harness.entry_states(good).keys() == harness.entry_states(drained).keys()


def test_a_node_relabelled_away_and_back_keeps_its_entry(harness: OperatorHarness, fake_loaders: FakeLoaders) -> None:
    stays, moved = harness.add_nodes("stays", "moved")
    harness.create()
    harness.wait_for_condition("Warm")
    harness.patch_node(moved, {"metadata": {"labels": {"test-namespace": "another"}}})
    eventually(lambda: harness.status()["nodes"]["summary"] == "1/1")
    assert list(harness.entry_states(moved).values()) == ["Ready"], "pods on the node may use it"
    harness.patch_node(moved, {"metadata": {"labels": {"test-namespace": harness.namespace}}})
    eventually(lambda: harness.status()["nodes"]["summary"] == "2/2")
    loads = [node for role, node in fake_loaders.terminated if role == names.ROLE_LOAD and node in {stays, moved}]
    assert sorted(loads) == sorted([stays, moved]), "each node loads once"


def test_deletion_is_not_stuck_on_a_dead_node(harness: OperatorHarness, fake_loaders: FakeLoaders) -> None:
    del fake_loaders
    (node,) = harness.add_nodes("a")
    harness.create()
    harness.wait_for_condition("Warm")
    harness.set_node_status(node, ready=False)
    harness.delete()
    eventually(harness.is_gone)
    assert harness.entry_states(node)
    conditions = {each["type"]: each["reason"] for each in harness.nodecache_status(node)["conditions"]}
    assert conditions["Ready"] == "NodeNotReady"
    harness.set_node_status(node)
    eventually(lambda: not harness.entry_states(node), timeout=25)


def test_names_of_250_characters_work(harness: OperatorHarness, fake_loaders: FakeLoaders) -> None:
    """Names of the object and of the node: they don't fit label values, and no object is named after a node."""
    del fake_loaders
    (node,) = harness.add_nodes("n" * (250 - len(harness.namespace)), labels={names.HOSTNAME_LABEL: "short"})
    name = "m" * 250
    harness.create(name=name)
    harness.wait_for_condition("Warm", name=name)
    assert list(harness.entry_states(node).values()) == ["Ready"]
    harness.delete(name)
    eventually(lambda: harness.is_gone(name), timeout=25)
    assert not harness.entry_states(node)
