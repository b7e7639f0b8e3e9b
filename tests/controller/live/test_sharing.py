"""The installation's ``sharing`` decides whether namespaces share entries."""

from __future__ import annotations

import pytest

from operator_support.harness import ControllerThread, OperatorHarness, admin_client_config, make_installation
from support.waiting import eventually


@pytest.mark.usefixtures("fake_loaders", "operator_namespace")
def test_namespaces_have_separate_entries_if_sharing_is_by_namespace(harness: OperatorHarness) -> None:
    plane = harness.plane
    other = OperatorHarness(plane, f"{harness.namespace}-other")
    plane.kubectl("create", "namespace", other.namespace)
    (node,) = harness.add_nodes("a")
    same = {
        "source": {"s3": {"bucket": harness.namespace}},
        "placement": {"nodeSelector": {"test-namespace": harness.namespace}},
    }
    with ControllerThread(admin_client_config(plane), make_installation(sharing="Namespace")):
        harness.create()
        other.create(same)
        harness.wait_for_condition("Warm")
        other.wait_for_condition("Warm")
        revision = harness.status()["resolved"]["revision"]
        assert other.status()["resolved"]["revision"] == revision
        both = {f"{harness.namespace}/{revision}": "Ready", f"{other.namespace}/{revision}": "Ready"}
        assert harness.entry_states(node) == both
        other.delete()
        eventually(other.is_gone, timeout=25)
        assert harness.entry_states(node) == {f"{harness.namespace}/{revision}": "Ready"}
        harness.delete()
        eventually(harness.is_gone, timeout=25)
