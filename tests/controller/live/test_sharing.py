"""Whose entries are whose, as the administrator decides."""

from __future__ import annotations

import pytest

from operator_support.harness import ControllerThread, OperatorHarness, admin_client_config, make_installation
from operator_support.waiting import eventually


@pytest.mark.usefixtures("fake_loaders", "operator_namespace")
def test_namespaces_have_entries_of_their_own_where_the_administrator_says_so(harness: OperatorHarness) -> None:
    plane = harness.plane
    guest = OperatorHarness(plane, f"{harness.namespace}-guest")
    plane.kubectl("create", "namespace", guest.namespace)
    (node,) = harness.add_nodes("a")
    same = {
        "source": {"s3": {"bucket": harness.namespace}},
        "placement": {"nodeSelector": {"test-namespace": harness.namespace}},
    }
    with ControllerThread(admin_client_config(plane), make_installation(sharing="Namespace")):
        harness.create()
        guest.create(same)
        harness.wait_for_condition("Warm")
        guest.wait_for_condition("Warm")
        revision = harness.status()["resolved"]["revision"]
        assert guest.status()["resolved"]["revision"] == revision
        both = {f"{harness.namespace}/{revision}": "Ready", f"{guest.namespace}/{revision}": "Ready"}
        assert harness.entry_states(node) == both
        guest.delete()
        eventually(guest.is_gone, timeout=25)
        assert harness.entry_states(node) == {f"{harness.namespace}/{revision}": "Ready"}
        harness.delete()
        eventually(harness.is_gone, timeout=25)
