"""Nodes that come, go, are cordoned, drained, rebooted, relabelled, or dead, on a real control plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from operator_support.waiting import eventually
from tonnage_operator.api import names

if TYPE_CHECKING:
    from operator_support.fleet import Fleet
    from operator_support.kubelet import Loaders

pytestmark = pytest.mark.usefixtures("controller")


def test_nodes_that_come_go_and_reboot_are_followed(fleet: Fleet, loaders: Loaders) -> None:
    (first,) = fleet.add_nodes("a")
    fleet.create()
    fleet.until("Warm")
    (second,) = fleet.add_nodes("b")
    eventually(lambda: fleet.status()["nodes"]["summary"] == "2/2")
    loaders.hold = True
    fleet.set_node_status(second, boot="boot-2")
    eventually(lambda: fleet.status()["nodes"]["summary"] == "1/2")
    eventually(lambda: list(fleet.entries(second).values()) == ["Loading"])
    loaders.hold = False
    fleet.until("Warm")
    fleet.patch_node(second, {"spec": {"unschedulable": True}})
    eventually(lambda: fleet.status()["nodes"]["summary"] == "1/1")
    fleet.delete_node(second)
    eventually(lambda: not fleet.cache(second))
    fleet.patch_node(first, {"metadata": {"labels": {"fleet": None}}})
    fleet.until("Warm", "False", "NoMatchingNodes")
    fleet.delete_node(first)


def test_a_node_that_is_drained_while_it_loads_loads_when_it_is_back(fleet: Fleet, loaders: Loaders) -> None:
    good, drained = fleet.add_nodes("good", "drained")
    loaders.hold = True
    fleet.create()
    pod = eventually(lambda: fleet.loading_pod(drained))
    fleet.patch_node(drained, {"spec": {"unschedulable": True}})
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    fleet.plane.request("POST", f"/api/v1/namespaces/{fleet.namespace}/pods/{pod}/eviction", eviction)
    loaders.hold = False
    fleet.until("Warm")
    assert fleet.status()["nodes"]["summary"] == "1/1"
    assert fleet.condition("Degraded")[0] == "False", "nobody is to be troubled by a drain"
    fleet.patch_node(drained, {"spec": {"unschedulable": False}})
    eventually(lambda: fleet.status()["nodes"]["summary"] == "2/2", within=45)
    assert fleet.entries(good).keys() == fleet.entries(drained).keys()


def test_a_node_that_is_relabelled_away_and_back_keeps_its_bytes(fleet: Fleet, loaders: Loaders) -> None:
    stays, moved = fleet.add_nodes("stays", "moved")
    fleet.create()
    fleet.until("Warm")
    fleet.patch_node(moved, {"metadata": {"labels": {"fleet": "another"}}})
    eventually(lambda: fleet.status()["nodes"]["summary"] == "1/1")
    assert list(fleet.entries(moved).values()) == ["Ready"], "pods may still be there"
    fleet.patch_node(moved, {"metadata": {"labels": {"fleet": fleet.namespace}}})
    eventually(lambda: fleet.status()["nodes"]["summary"] == "2/2")
    loads = [node for role, node in loaders.ended if role == names.ROLE_LOAD and node in {stays, moved}]
    assert sorted(loads) == sorted([stays, moved]), "each loaded once"


def test_deletion_is_not_stuck_on_a_dead_node(fleet: Fleet, loaders: Loaders) -> None:
    del loaders
    (node,) = fleet.add_nodes("a")
    fleet.create()
    fleet.until("Warm")
    fleet.set_node_status(node, ready=False)
    fleet.delete()
    eventually(fleet.gone)
    assert fleet.entries(node)
    conditions = {each["type"]: each["reason"] for each in fleet.cache(node)["conditions"]}
    assert conditions["Ready"] == "NodeNotReady"
    fleet.set_node_status(node)
    eventually(lambda: not fleet.entries(node), within=25)


def test_names_of_250_characters_work(fleet: Fleet, loaders: Loaders) -> None:
    """Of the object and of the node: neither fits a label, and node names are in the names of nothing."""
    del loaders
    (node,) = fleet.add_nodes("n" * (250 - len(fleet.namespace)), labels={names.HOSTNAME_LABEL: "short"})
    name = "m" * 250
    fleet.create(name=name)
    fleet.until("Warm", name=name)
    assert list(fleet.entries(node).values()) == ["Ready"]
    fleet.delete(name)
    eventually(lambda: fleet.gone(name), within=25)
    assert not fleet.entries(node)
