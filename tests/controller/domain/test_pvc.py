"""Models in a PersistentVolumeClaim: loaded once for all pods, and old revisions removed."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

from operator_support import objects
from operator_support.simulation import Simulation
from tonnage_operator.api import names
from tonnage_operator.domain.observed.held_entries import HeldEntry
from tonnage_operator.domain.observed.job import parse_job
from tonnage_operator.domain.observed.pod import Pod
from tonnage_operator.domain.units import format_time

AUTOMATIC = {"revision": {"policy": "Track", "interval": "10m", "update": "Automatic"}}


def _loaded(spec: dict[str, Any] | None = None) -> Simulation:
    cache = {"cache": {"delivery": "PersistentVolumeClaim", "claimName": "weights"}}
    simulation = Simulation(objects.deep_merge({**cache, "placement": {"prewarm": "AllMatching"}}, spec or {}))
    simulation.add_nodes("n0", "n1", "n2")
    simulation.finish_resolve()
    simulation.finish_loads()
    return simulation


def _update(simulation: Simulation, version: str = "2") -> None:
    simulation.advance(601)
    simulation.finish_resolve(version)
    simulation.finish_loads()


def _revision(simulation: Simulation) -> str:
    revision: str = simulation.status["resolved"]["revision"]
    return revision


def _cleanups(simulation: Simulation) -> list[list[str]]:
    """Returns the entries that each active cleanup Job removes."""
    jobs = simulation.active_jobs(names.ROLE_CLEANUP)
    return [job["spec"]["template"]["spec"]["containers"][0]["args"][4:] for job in jobs]


def _pod(revision: str, *, namespace: str = "serving") -> Pod:
    claim = HeldEntry(
        container=names.LOADER_CONTAINER, namespace="serving", name="llama", uid=objects.UID, revision=revision
    )
    return Pod(
        namespace=namespace,
        name="p",
        uid="pu",
        role=names.ROLE_INJECTED,
        model_uid="",
        job_uid="",
        node="n0",
        phase="Running",
        reason="",
        message="",
        created="2026-01-01T00:00:00Z",
        unschedulable_message="",
        held_entries=(claim,),
        loaders=(),
        deleting=False,
    )


def test_a_pvc_is_loaded_once() -> None:
    simulation = _loaded()
    assert simulation.condition("Warm") == ("True", "AllNodesWarm")
    assert simulation.condition("Ready") == ("True", "Warm")
    assert len(simulation.started_jobs) == 2
    assert simulation.events.count("LoadCompleted") == 1
    (load,) = simulation.jobs.values()
    assert simulation.job_node(load) == "pvc/weights"


def test_the_cleanup_job_of_a_pvc_has_no_credentials_and_fits_the_restricted_profile() -> None:
    simulation = _loaded()
    simulation.step_deletion()
    (job,) = simulation.active_jobs(names.ROLE_CLEANUP)
    pod = job["spec"]["template"]["spec"]
    assert job["metadata"]["namespace"] == "serving"
    assert pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["securityContext"]["runAsNonRoot"] is True
    assert pod["volumes"] == [{"name": "tonnage-cache", "persistentVolumeClaim": {"claimName": "weights"}}]
    assert "env" not in pod["containers"][0]


def test_the_old_revision_is_removed_once_the_new_one_is_used() -> None:
    simulation = _loaded(AUTOMATIC)
    old = _revision(simulation)
    simulation.advance(601)
    simulation.finish_resolve("2")
    assert not _cleanups(simulation), "it is in use until the new one is there"
    simulation.finish_loads()
    assert _revision(simulation) != old
    assert _cleanups(simulation) == [[old]]
    (job,) = simulation.active_jobs(names.ROLE_CLEANUP)
    simulation.finish_job(job)
    simulation.converge()
    assert not simulation.active_jobs(names.ROLE_CLEANUP), "once is enough"


def test_an_old_revision_stays_as_long_as_a_pod_or_another_object_uses_it() -> None:
    simulation = _loaded(AUTOMATIC)
    old = _revision(simulation)
    simulation.consumers = [_pod(old)]
    _update(simulation)
    assert not _cleanups(simulation)
    simulation.consumers = [_pod(old, namespace="elsewhere")]
    simulation.shared_entries = frozenset({old})
    simulation.converge()
    assert not _cleanups(simulation)
    simulation.shared_entries = frozenset()
    simulation.converge()
    assert _cleanups(simulation) == [[old]], "a pod of another namespace has another claim"


def test_a_rollback_waits_until_the_cleanup_of_the_revision_has_finished() -> None:
    simulation = _loaded(AUTOMATIC)
    old = _revision(simulation)
    _update(simulation)
    simulation.spec["revision"] = {"policy": "Track", "interval": "10m", "pin": old}
    decision = simulation.step()
    assert simulation.condition("Resolved")[0] == "True"
    assert [job.key for job in decision.delete if job.role == names.ROLE_CLEANUP] == [old]
    assert all(job["metadata"]["labels"][names.ROLE] != names.ROLE_LOAD for job in decision.apply)
    simulation.converge()
    assert _revision(simulation) != old, "the claim doesn't have it yet"
    simulation.finish_loads()
    assert _revision(simulation) == old
    assert simulation.condition("Warm")[0] == "True"


def test_a_deleted_object_removes_its_revisions_from_the_pvc() -> None:
    simulation = _loaded(AUTOMATIC)
    old = _revision(simulation)
    _update(simulation)
    assert "Removing its entries from PersistentVolumeClaim weights" in simulation.step_deletion().waiting_message
    deleted = [each for each in _cleanups(simulation) if len(each) == 2]
    assert deleted == [sorted([old, _revision(simulation)])]
    assert not simulation.active_jobs(names.ROLE_LOAD)
    for job in simulation.active_jobs(names.ROLE_CLEANUP):
        simulation.finish_job(job)
    assert simulation.step_deletion().waiting_message == ""


def test_a_deleted_object_keeps_entries_that_pods_and_others_use() -> None:
    simulation = _loaded()
    simulation.consumers = [_pod(_revision(simulation))]
    assert simulation.step_deletion().waiting_message == ""
    assert not _cleanups(simulation)


def test_an_object_that_never_resolved_is_deleted_at_once() -> None:
    simulation = Simulation({"cache": {"delivery": "PersistentVolumeClaim", "claimName": "weights"}})
    simulation.converge()
    assert simulation.step_deletion().waiting_message == ""


def test_a_pvc_on_which_cleanup_fails_does_not_block_deletion() -> None:
    simulation = _loaded()
    for _ in range(3):
        assert simulation.step_deletion().waiting_message
        (job,) = simulation.active_jobs(names.ROLE_CLEANUP)
        simulation.finish_job(job, code=30)
        simulation.now += timedelta(seconds=61)
    assert simulation.step_deletion().waiting_message == ""
    assert "ClaimNotEmptied" in simulation.events


def test_a_pvc_that_no_pod_can_mount_does_not_block_deletion() -> None:
    simulation = _loaded()
    simulation.step_deletion()
    (job,) = simulation.active_jobs(names.ROLE_CLEANUP)
    job["status"] = {"startTime": format_time(simulation.now)}
    pending = dataclasses.replace(_pod(""), held_entries=(), phase="Pending", unschedulable_message="no such claim")
    simulation.pods[job["metadata"]["uid"]] = pending
    assert simulation.step_deletion().requeue_after == 60
    simulation.now += timedelta(seconds=60)
    assert simulation.step_deletion().waiting_message == ""
    assert "ClaimNotEmptied" in simulation.events


def test_a_pvc_needs_no_medium_of_the_installation() -> None:
    simulation = _loaded()
    (load,) = [parse_job(job) for job in simulation.jobs.values()]
    assert load.node_name == ""
