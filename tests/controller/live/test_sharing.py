"""Whose entries are whose, as the administrator decides."""

from __future__ import annotations

import pytest

from operator_support.fleet import ControllerThread, Fleet, admin_access, installation
from operator_support.waiting import eventually


@pytest.mark.usefixtures("loaders", "operator_namespace")
def test_namespaces_have_entries_of_their_own_where_the_administrator_says_so(fleet: Fleet) -> None:
    plane = fleet.plane
    guest = Fleet(plane, f"{fleet.namespace}-guest")
    plane.kubectl("create", "namespace", guest.namespace)
    (node,) = fleet.add_nodes("a")
    same = {
        "source": {"s3": {"bucket": fleet.namespace}},
        "placement": {"nodeSelector": {"fleet": fleet.namespace}},
    }
    with ControllerThread(admin_access(plane), installation(sharing="Namespace")):
        fleet.create()
        guest.create(same)
        fleet.until("Warm")
        guest.until("Warm")
        revision = fleet.status()["resolved"]["revision"]
        assert guest.status()["resolved"]["revision"] == revision
        both = {f"{fleet.namespace}/{revision}": "Ready", f"{guest.namespace}/{revision}": "Ready"}
        assert fleet.entries(node) == both
        guest.delete()
        eventually(guest.gone, within=25)
        assert fleet.entries(node) == {f"{fleet.namespace}/{revision}": "Ready"}
        fleet.delete()
        eventually(fleet.gone, within=25)
