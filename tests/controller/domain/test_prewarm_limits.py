"""Which nodes the administrator lets objects warm: node labels, and taints that may be tolerated."""

from __future__ import annotations

from typing import Any

import pytest

from operator_support import objects
from operator_support.simulation import Simulation
from tonnage_operator.api import names
from tonnage_operator.domain.installation import PrewarmSettings

CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
EVERYTHING = {"operator": "Exists"}


@pytest.mark.parametrize(
    ("patterns", "key", "allowed"),
    [
        (("*",), "nvidia.com/gpu", True),
        (("*",), "dedicated", True),
        (("*",), CONTROL_PLANE, False),
        (("*",), "node.kubernetes.io/unreachable", False),
        (("*", CONTROL_PLANE), CONTROL_PLANE, True),
        (("node-role.kubernetes.io/*",), CONTROL_PLANE, True),
        (("nvidia.com/*",), "nvidia.com/gpu", True),
        (("nvidia.com/*",), "dedicated", False),
        (("nvidia.com/gpu",), "nvidia.com/gpus", False),
        ((), "dedicated", False),
    ],
)
def test_keys_of_taints_are_allowed_by_name_by_prefix_or_all_but_those_of_kubernetes(
    patterns: tuple[str, ...], key: str, allowed: bool
) -> None:
    assert PrewarmSettings(allowed_taints=patterns).allows_taint(key) is allowed


def _simulation(toleration: dict[str, Any], **prewarm: Any) -> Simulation:
    installation = objects.INSTALLATION.model_copy(update={"prewarm": PrewarmSettings(**prewarm)})
    placement = {"prewarm": "AllMatching", "tolerations": [toleration]}
    simulation = Simulation({"placement": placement}, installation=installation)
    simulation.add_nodes("control", taints=[{"key": CONTROL_PLANE, "effect": "NoSchedule"}])
    simulation.add_nodes("gpu", taints=[{"key": "nvidia.com/gpu", "value": "a", "effect": "NoSchedule"}])
    simulation.add_nodes("plain", labels={"pool": "serving"})
    simulation.finish_resolve()
    return simulation


@pytest.mark.parametrize("toleration", [EVERYTHING, {"key": CONTROL_PLANE, "operator": "Exists"}])
def test_no_toleration_of_an_object_warms_a_control_plane_unless_the_administrator_names_its_taint(
    toleration: dict[str, Any],
) -> None:
    assert "control" not in _simulation(toleration).loading_nodes()
    assert "control" in _simulation(toleration, allowed_taints=(CONTROL_PLANE,)).loading_nodes()


def test_a_job_tolerates_the_allowed_taints_of_its_node_and_never_everything() -> None:
    simulation = _simulation(EVERYTHING)
    assert simulation.loading_nodes() == {"gpu", "plain"}
    for job in simulation.active_jobs(names.ROLE_LOAD):
        wanted = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        tolerations = job["spec"]["template"]["spec"].get("tolerations", [])
        assert tolerations == (wanted if simulation.job_node(job) == "gpu" else [])


def test_nodes_need_the_labels_of_the_administrator_too() -> None:
    assert _simulation(EVERYTHING, node_selector={"pool": "serving"}).loading_nodes() == {"plain"}
