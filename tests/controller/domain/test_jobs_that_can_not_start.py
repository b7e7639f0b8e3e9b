"""A Job whose loader can't start is replaced as soon as a change may let it start; one that runs is not."""

from __future__ import annotations

from typing import Any

import pytest

from operator_support import objects
from operator_support.simulation import Simulation, prewarming_simulation
from tonnage_operator.api import names
from tonnage_operator.domain.observed.pod import parse_pod

UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "untolerated taint"}
TOLERATION = {"placement": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}}
RESOURCES = {"loader": {"resources": {"requests": {"cpu": "100m"}}}}
VALUES: dict[str, dict[str, Any]] = {
    "tolerations": {"jobs": {"tolerations": [{"operator": "Exists"}]}},
    "node selector": {"jobs": {"nodeSelector": {"pool": "cpu"}}},
    "queue": {"jobs": {"labels": {"kueue.x-k8s.io/queue-name": "q"}}},
    "image": {"loader": {"image": "tonnage-loader:2"}},
}


def only_job(simulation: Simulation, role: str) -> dict[str, Any]:
    (job,) = simulation.active_jobs(role)
    return job


def set_pod(simulation: Simulation, job: dict[str, Any], status: dict[str, Any]) -> None:
    body = {"metadata": {**job["metadata"], "name": "p", "uid": "p"}, "spec": {}, "status": status}
    simulation.pods[job["metadata"]["uid"]] = parse_pod(body)


def pending(role: str) -> tuple[Simulation, dict[str, Any]]:
    """Returns a simulation with one Job of a role, whose pod is unschedulable."""
    simulation = prewarming_simulation(1)
    if role == names.ROLE_LOAD:
        simulation.finish_resolve()
    simulation.converge()
    job = only_job(simulation, role)
    set_pod(simulation, job, {"conditions": [UNSCHEDULABLE]})
    simulation.converge()
    assert only_job(simulation, role) is job
    return simulation, job


def change_values(simulation: Simulation, changes: dict[str, Any]) -> None:
    values = objects.INSTALLATION.model_dump(mode="json", by_alias=True)
    changed = objects.INSTALLATION.model_validate(objects.deep_merge(values, changes))
    simulation.installation = changed.model_copy(update={"signing": objects.KEYS})


@pytest.mark.parametrize("role", [names.ROLE_RESOLVE, names.ROLE_LOAD])
@pytest.mark.parametrize("change", [TOLERATION, RESOURCES], ids=["tolerations", "resources"])
def test_a_change_of_the_spec_replaces_it(role: str, change: dict[str, Any]) -> None:
    simulation, job = pending(role)
    simulation.spec = objects.deep_merge(simulation.spec, change)
    simulation.converge()
    replaced = only_job(simulation, role)
    assert replaced["metadata"]["name"] != job["metadata"]["name"]
    assert replaced["metadata"]["annotations"][names.ATTEMPT] == "2"


@pytest.mark.parametrize("change", VALUES.values(), ids=VALUES)
def test_a_change_of_the_chart_replaces_it(change: dict[str, Any]) -> None:
    simulation, job = pending(names.ROLE_RESOLVE)
    change_values(simulation, change)
    simulation.converge()
    assert only_job(simulation, names.ROLE_RESOLVE)["metadata"]["name"] != job["metadata"]["name"]


@pytest.mark.parametrize("role", [names.ROLE_RESOLVE, names.ROLE_LOAD])
def test_a_change_of_the_plan_alone_does_not(role: str) -> None:
    simulation, job = pending(role)
    simulation.spec = objects.deep_merge(simulation.spec, {"loader": {"connections": 7}})
    simulation.converge()
    assert only_job(simulation, role) is job


@pytest.mark.parametrize("role", [names.ROLE_RESOLVE, names.ROLE_LOAD])
def test_a_loader_that_runs_is_not_replaced(role: str) -> None:
    simulation, job = pending(role)
    set_pod(simulation, job, {"phase": "Running"})
    simulation.spec = objects.deep_merge(simulation.spec, RESOURCES)
    simulation.converge()
    assert only_job(simulation, role) is job


def test_a_suspended_object_starts_no_other_one() -> None:
    simulation, job = pending(names.ROLE_RESOLVE)
    simulation.spec = objects.deep_merge(simulation.spec, {**RESOURCES, "suspend": True})
    simulation.converge()
    assert only_job(simulation, names.ROLE_RESOLVE) is job


def test_one_of_an_earlier_release_is_kept() -> None:
    simulation, job = pending(names.ROLE_RESOLVE)
    del job["metadata"]["annotations"][names.TEMPLATE]
    simulation.spec = objects.deep_merge(simulation.spec, RESOURCES)
    simulation.converge()
    assert only_job(simulation, names.ROLE_RESOLVE) is job
