"""Deletion of objects, and entries that users' pods keep."""

from __future__ import annotations

from datetime import timedelta

import pytest

from operator_support import objects
from operator_support.simulation import Simulation, consumer_pod, prewarming_simulation
from tonnage_operator.api import names
from tonnage_operator.api.nodecache import EntryState
from tonnage_operator.domain.modelweights.deletion import plan_deletion
from tonnage_operator.domain.specs import jobs


def test_a_pod_that_loaded_by_itself_makes_its_node_warm() -> None:
    simulation = Simulation()
    simulation.add_nodes("n0")
    simulation.finish_resolve()
    simulation.consumers = [consumer_pod(simulation, "n0", started=False)]
    simulation.converge()
    (entry,) = simulation.caches["n0"].entries or ()
    assert entry.state is EntryState.LOADING
    simulation.consumers = [consumer_pod(simulation, "n0")]
    simulation.converge()
    (entry,) = simulation.caches["n0"].entries or ()
    assert (entry.state, entry.bytes, entry.models) == (EntryState.READY, 2 * objects.GIB, ("serving/llama",))
    assert simulation.status["consumers"] == {"pods": 1, "namespaces": 1, "failing": 0}
    assert simulation.condition("Ready") == ("True", "Warm")


def test_deletion_evicts_entries_on_every_node_and_then_removes_the_finalizer() -> None:
    simulation = prewarming_simulation(2)
    simulation.finish_resolve()
    simulation.finish_loads()
    assert "Evicting its entries on 2 nodes" in simulation.step_deletion().waiting_message
    cleanups = simulation.active_jobs(names.ROLE_CLEANUP)
    assert {simulation.job_node(job) for job in cleanups} == {"n0", "n1"}
    for job in cleanups:
        simulation.finish_job(job)
    simulation.step_deletion()
    assert simulation.step_deletion().waiting_message == ""
    assert not simulation.jobs
    assert all(not cache.entries for cache in simulation.caches.values())


def test_deletion_during_a_load_leaves_no_bytes() -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve()
    simulation.step_deletion()
    assert simulation.loading_nodes() == set()
    simulation.step_deletion()
    (job,) = simulation.active_jobs(names.ROLE_CLEANUP)
    simulation.finish_job(job)
    simulation.step_deletion()
    assert simulation.step_deletion().waiting_message == ""


def test_deletion_waits_until_a_running_load_is_on_record() -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve()
    simulation.caches.clear()
    simulation.deleting = True
    deletion = plan_deletion(simulation.snapshot())
    assert deletion.delete == ()
    assert "on record" in deletion.waiting_message


@pytest.mark.parametrize("dead", ["gone", "not ready"])
def test_deletion_does_not_wait_for_an_unavailable_node(dead: str) -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve()
    simulation.finish_loads()
    if dead == "gone":
        del simulation.node_bodies["n0"]
    else:
        simulation.node_bodies["n0"] = objects.node("n0", ready=False)
    simulation.step_deletion()
    assert simulation.step_deletion().waiting_message == ""
    if dead == "not ready":
        (entry,) = simulation.caches["n0"].entries or ()
        assert entry.models == ()
        simulation.node_bodies["n0"] = objects.node("n0")
        simulation.sync_nodes()
        assert len(simulation.active_jobs(names.ROLE_CLEANUP)) == 1, "it is evicted when the node is ready again"


def test_deletion_keeps_entries_that_pods_hold_and_evicts_them_later() -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve()
    simulation.finish_loads()
    simulation.consumers = [consumer_pod(simulation, "n0")]
    simulation.step_deletion()
    assert simulation.step_deletion().waiting_message == ""
    assert not simulation.active_jobs(names.ROLE_CLEANUP)
    (entry,) = simulation.caches["n0"].entries or ()
    assert entry.state is EntryState.READY
    simulation.consumers = []
    simulation.sync_nodes()
    assert len(simulation.active_jobs(names.ROLE_CLEANUP)) == 1


def test_deletion_stops_waiting_for_failing_cleanups_which_are_still_retried() -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve()
    simulation.finish_loads()
    for _ in range(3):
        assert simulation.step_deletion().waiting_message or simulation.active_jobs(names.ROLE_CLEANUP)
        simulation.sync_nodes()
        (job,) = simulation.active_jobs(names.ROLE_CLEANUP)
        simulation.finish_job(job, code=30)
        simulation.now += timedelta(seconds=400)
    simulation.step_deletion()
    assert simulation.step_deletion().waiting_message == ""
    assert simulation.active_jobs(names.ROLE_CLEANUP)


def test_the_old_revision_is_evicted_once_no_pod_holds_it() -> None:
    simulation = prewarming_simulation(1, {"revision": {"policy": "Track", "interval": "10m", "update": "Automatic"}})
    simulation.finish_resolve()
    simulation.finish_loads()
    old = simulation.status["resolved"]["revision"]
    simulation.consumers = [consumer_pod(simulation, "n0")]
    simulation.advance(601)
    simulation.finish_resolve("2")
    simulation.finish_loads()
    assert simulation.status["resolved"]["revision"] != old
    assert not simulation.active_jobs(names.ROLE_CLEANUP)
    simulation.consumers = []
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_CLEANUP)
    assert job["metadata"]["annotations"][names.CACHE_KEY] == old
    simulation.finish_job(job)
    simulation.converge()
    assert [entry.name for entry in simulation.caches["n0"].entries or ()] == [
        simulation.status["resolved"]["revision"]
    ]
    assert not simulation.jobs


def test_an_evictable_entry_is_kept_until_its_space_is_needed() -> None:
    simulation = prewarming_simulation(1, {"cache": {"retention": "Evictable"}})
    simulation.finish_resolve()
    simulation.finish_loads()
    old = simulation.status["resolved"]["revision"]
    simulation.spec["source"] = {"s3": {"bucket": "models", "prefix": "llama"}}
    simulation.finish_resolve("2")
    assert not simulation.active_jobs(names.ROLE_CLEANUP)
    (job,) = simulation.active_jobs(names.ROLE_LOAD)
    simulation.finish_job(job, objects.failed_report("InsufficientSpace"), code=27)
    simulation.converge()
    (cleanup,) = simulation.active_jobs(names.ROLE_CLEANUP)
    assert cleanup["metadata"]["annotations"][names.CACHE_KEY] == old


def test_names_too_long_for_labels_are_cut_and_stay_distinct() -> None:
    first = objects.modelweights(name="a" * 250 + ".x")
    second = objects.modelweights(name="a" * 250 + ".y", uid="other")
    made = [jobs.build_resolve_job(each, objects.INSTALLATION, round_="", attempt=1) for each in (first, second)]
    names_ = {job["metadata"]["name"] for job in made}
    assert len(names_) == 2
    assert all(len(name) <= 63 for name in names_)
    assert all(len(value) <= 63 for job in made for value in job["metadata"]["labels"].values())
