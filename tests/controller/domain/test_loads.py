"""Load Jobs: which nodes load, how many at a time, and failing, new and deleted nodes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from operator_support import objects
from operator_support.simulation import prewarming_simulation
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.domain.observed.pod import parse_pod


def test_at_most_max_concurrent_nodes_load_at_once_until_all_are_warm() -> None:
    simulation = prewarming_simulation(10, {"placement": {"maxConcurrentNodes": 3}})
    simulation.finish_resolve()
    most = 0
    while loading := simulation.loading_nodes():
        most = max(most, len(loading))
        simulation.finish_loads(min(loading))
    assert most == 3
    counts = {"desired": 10, "warm": 10, "loading": 0, "updated": 10, "failed": 0}
    assert simulation.status["nodes"] == {**counts, "summary": "10/10"}
    assert simulation.condition("Warm") == ("True", "AllNodesWarm")
    assert simulation.condition("Progressing") == ("False", "Idle")
    assert len(simulation.started_jobs) == 11
    assert not simulation.jobs


def test_one_warm_node_makes_it_ready_and_all_make_it_warm() -> None:
    simulation = prewarming_simulation(2)
    simulation.finish_resolve()
    assert simulation.condition("Ready") == ("False", "PartiallyWarm")
    simulation.finish_loads("n0")
    assert simulation.condition("Ready") == ("True", "Warm")
    assert simulation.condition("Warm")[0] == "False"
    simulation.finish_loads()
    assert simulation.condition("Warm")[0] == "True"


def test_a_settled_object_is_not_written_again() -> None:
    simulation = prewarming_simulation()
    simulation.finish_resolve()
    simulation.finish_loads()
    before = simulation.status
    simulation.now += timedelta(days=1)
    decision = simulation.step()
    assert simulation.status == before
    assert (decision.apply, decision.delete, decision.events, decision.requeue_after) == ((), (), (), None)


def test_a_new_node_is_loaded() -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve()
    simulation.finish_loads()
    simulation.add_nodes("n9")
    simulation.converge()
    assert simulation.loading_nodes() == {"n9"}
    assert simulation.status["nodes"]["summary"] == "1/2"


@pytest.mark.parametrize(
    "change",
    [
        {"unschedulable": True},
        {"taints": [{"key": "gone", "effect": "NoExecute"}]},
        {"ready": False},
    ],
    ids=["cordoned", "tainted", "not ready"],
)
def test_an_unschedulable_node_is_not_loaded(change: dict[str, Any]) -> None:
    simulation = prewarming_simulation(1)
    simulation.add_nodes("n9", **change)
    simulation.finish_resolve()
    assert simulation.loading_nodes() == {"n0"}
    simulation.finish_loads()
    assert simulation.condition("Warm")[0] == "True"


def test_a_node_that_is_cordoned_during_a_load_may_finish() -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve()
    simulation.node_bodies["n0"]["spec"]["unschedulable"] = True
    simulation.converge()
    assert simulation.loading_nodes() == {"n0"}


def test_a_node_that_no_longer_matches_stops_loading() -> None:
    simulation = prewarming_simulation(1, {"placement": {"nodeSelector": {"gpu": "true"}}})
    simulation.add_nodes("g0", labels={"gpu": "true"})
    simulation.finish_resolve()
    assert simulation.loading_nodes() == {"g0"}
    simulation.node_bodies["g0"]["metadata"]["labels"]["gpu"] = "false"
    simulation.converge()
    assert simulation.loading_nodes() == set()
    assert simulation.condition("Warm") == ("False", "NoMatchingNodes")


def test_a_job_for_a_deleted_node_is_deleted() -> None:
    simulation = prewarming_simulation(2)
    simulation.finish_resolve()
    del simulation.node_bodies["n0"]
    simulation.converge()
    assert simulation.loading_nodes() == {"n1"}


def test_entries_in_memory_are_loaded_again_after_a_reboot() -> None:
    simulation = prewarming_simulation(2)
    simulation.finish_resolve()
    simulation.finish_loads()
    simulation.node_bodies["n1"]["status"]["nodeInfo"]["bootID"] = "boot-2"
    simulation.converge()
    assert simulation.loading_nodes() == {"n1"}
    assert simulation.status["nodes"]["summary"] == "1/2"
    assert simulation.condition("Ready")[0] == "True"


def test_a_reboot_during_a_load_restarts_the_load() -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve()
    (job,) = simulation.active_jobs(names.ROLE_LOAD)
    simulation.node_bodies["n0"]["status"]["nodeInfo"]["bootID"] = "boot-2"
    simulation.finish_job(job, contract.Report(outcome=contract.Outcome.LOADED, bytes=1))
    simulation.converge()
    (again,) = simulation.active_jobs(names.ROLE_LOAD)
    assert again["metadata"]["name"] != job["metadata"]["name"]
    assert simulation.status["nodes"]["warm"] == 0


def test_a_reboot_keeps_entries_on_disk() -> None:
    simulation = prewarming_simulation(1, {"cache": {"medium": "Disk"}})
    simulation.finish_resolve()
    simulation.finish_loads()
    simulation.node_bodies["n0"]["status"]["nodeInfo"]["bootID"] = "boot-2"
    simulation.converge()
    assert simulation.status["nodes"]["summary"] == "1/1"


def test_count_keeps_that_number_of_nodes_warm_and_prefers_warm_ones() -> None:
    simulation = prewarming_simulation(5, {"placement": {"prewarm": "Count", "count": 2}})
    simulation.finish_resolve()
    first = simulation.loading_nodes()
    assert len(first) == 2
    simulation.finish_loads()
    simulation.add_nodes(*(f"m{index}" for index in range(20)))
    simulation.converge()
    assert simulation.loading_nodes() == set()
    assert simulation.condition("Warm") == ("True", "AllNodesWarm")
    del simulation.node_bodies[min(first)]
    simulation.converge()
    assert len(simulation.loading_nodes()) == 1


def test_a_count_above_the_matching_nodes_is_reported() -> None:
    simulation = prewarming_simulation(1, {"placement": {"prewarm": "Count", "count": 2}})
    simulation.finish_resolve()
    simulation.finish_loads()
    assert simulation.condition("Warm") == ("False", "TooFewNodes")
    assert simulation.condition("Ready")[0] == "True"


@pytest.mark.parametrize(
    ("report", "code", "reason", "expected"),
    [
        (objects.failed_report("InsufficientSpace"), 27, "Error", "InsufficientSpace"),
        (objects.failed_report("ChecksumMismatch"), 24, "Error", "ChecksumMismatch"),
        (objects.failed_report("SourceChanged"), 18, "Error", "SourceChanged"),
        (None, 137, "OOMKilled", "LoaderOOMKilled"),
        (None, 1, "Error", "InternalError"),
    ],
)
def test_a_failing_node_is_named_with_its_reason_and_recovers_by_itself(
    report: contract.Report | None, code: int, reason: str, expected: str
) -> None:
    simulation = prewarming_simulation(2)
    simulation.finish_resolve()
    for attempt in (1, 2, 3):
        (job,) = [job for job in simulation.active_jobs(names.ROLE_LOAD) if simulation.job_node(job) == "n1"]
        assert job["metadata"]["annotations"][names.ATTEMPT] == str(attempt)
        simulation.finish_job(job, report, code=code, reason=reason)
        simulation.converge()
        (failure,) = simulation.status["failures"]
        assert (failure["node"], failure["reason"], failure["attempts"]) == ("n1", expected, attempt)
        assert simulation.condition("Degraded") == ("True", "NodeLoadFailed")
        simulation.advance(400)
    assert simulation.events.count(expected) == 1
    simulation.finish_loads()
    assert simulation.status["nodes"]["summary"] == "2/2"
    assert "failures" not in simulation.status
    assert simulation.condition("Degraded") == ("False", "AllNodesHealthy")


def test_an_oom_killed_loader_is_reported_with_its_numbers() -> None:
    simulation = prewarming_simulation(
        1, {"cache": {"medium": "Disk"}, "loader": {"resources": {"limits": {"memory": "1Gi"}}}}
    )
    simulation.finish_resolve()
    (job,) = simulation.active_jobs(names.ROLE_LOAD)
    simulation.finish_job(job, code=137, reason="OOMKilled")
    simulation.converge()
    (failure,) = simulation.status["failures"]
    assert "its limit is 1Gi, and 2Gi have to be written" in failure["message"]


def test_a_failing_node_does_not_delay_the_others() -> None:
    simulation = prewarming_simulation(3, {"placement": {"maxConcurrentNodes": 1}})
    simulation.finish_resolve()
    (job,) = simulation.active_jobs(names.ROLE_LOAD)
    simulation.finish_job(job, objects.failed_report("CacheNotWritable"), code=28)
    simulation.converge()
    assert simulation.loading_nodes()
    assert simulation.job_node(job) not in simulation.loading_nodes()


def test_a_job_whose_pod_vanished_counts_as_evicted() -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve()
    (job,) = simulation.active_jobs(names.ROLE_LOAD)
    simulation.finish_job(job, code=1)
    simulation.pods.clear()
    simulation.converge()
    assert "failures" not in simulation.status, "its last words may still come"
    simulation.advance(15)
    assert simulation.status["failures"][0]["reason"] == "LoaderEvicted"


def test_failures_are_capped_and_counted() -> None:
    simulation = prewarming_simulation(30, {"placement": {"maxConcurrentNodes": 30}})
    simulation.finish_resolve()
    for job in simulation.active_jobs(names.ROLE_LOAD):
        simulation.finish_job(job, objects.failed_report("AccessDenied"), code=10)
    simulation.converge()
    assert len(simulation.status["failures"]) == 10
    assert simulation.status["nodes"]["failed"] == 30


def test_a_suspended_object_starts_nothing_and_keeps_its_entries() -> None:
    simulation = prewarming_simulation(2)
    simulation.finish_resolve()
    simulation.finish_loads("n0")
    simulation.spec["suspend"] = True
    simulation.add_nodes("n5")
    running = simulation.loading_nodes()
    simulation.converge()
    assert simulation.loading_nodes() == running
    simulation.finish_loads()
    assert simulation.condition("Progressing") == ("False", "Suspended")
    assert simulation.condition("Ready")[0] == "True"


def test_progress_is_that_of_the_slowest_node() -> None:
    simulation = prewarming_simulation(2)
    simulation.finish_resolve()
    for index, job in enumerate(sorted(simulation.active_jobs(names.ROLE_LOAD), key=simulation.job_node)):
        progress = contract.Progress(
            phase="loading",
            loaded_bytes=(index + 1) * 10,
            total_bytes=100,
            bytes_per_second=5,
            remaining_seconds=130 - index * 100,
        )
        simulation.reports[job["metadata"]["uid"]] = contract.Report(
            kind=contract.ReportKind.PROGRESS, progress=progress
        )
    simulation.converge()
    assert simulation.status["progress"]["node"] == "n0"
    assert simulation.status["progress"]["eta"] == "2m10s"
    assert simulation.status["progressSummary"] == "10%"


def test_nodes_without_space_for_the_loader_do_not_delay_the_others() -> None:
    simulation = prewarming_simulation(6, {"placement": {"maxConcurrentNodes": 2}})
    simulation.finish_resolve()
    stuck = simulation.loading_nodes()
    for job in simulation.active_jobs(names.ROLE_LOAD):
        unplaced = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "too little memory",
        }
        body = {"metadata": {**job["metadata"], "name": "p", "uid": "p"}, "status": {"conditions": [unplaced]}}
        simulation.pods[job["metadata"]["uid"]] = parse_pod(body)
    simulation.converge()
    assert len(simulation.loading_nodes() - stuck) == 2
    assert simulation.condition("Degraded") == ("True", "NodeLoadFailed")
    assert {each["reason"] for each in simulation.status["failures"]} == {"LoaderUnschedulable"}
    while simulation.loading_nodes() - stuck:
        simulation.finish_loads(*(simulation.loading_nodes() - stuck))
    assert simulation.status["nodes"]["summary"] == "4/6"
