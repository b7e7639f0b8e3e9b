from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from operator_support import objects
from operator_support.simulation import Simulation
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.api.nodecache import EntryState
from tonnage_operator.domain import facts, jobs
from tonnage_operator.domain.claims import Claim
from tonnage_operator.domain.reconcile import decide_farewell
from tonnage_operator.domain.units import format_time

ALL = {"placement": {"prewarm": "AllMatching"}}


def _fleet(count: int = 4, spec: dict[str, Any] | None = None) -> Simulation:
    simulation = Simulation(objects.merged(ALL, spec or {}))
    simulation.add_nodes(*(f"n{index}" for index in range(count)))
    return simulation


def test_the_source_alone_is_resolved_and_then_ready() -> None:
    simulation = Simulation()
    simulation.add_nodes("n0")
    simulation.settle()
    assert simulation.condition("Resolved") == ("False", "Resolving")
    simulation.resolve()
    assert simulation.condition("Ready") == ("True", "LoadedOnDemand")
    assert simulation.condition("Warm") == ("True", "NothingToPrewarm")
    assert simulation.status["size"] == "2Gi"
    assert simulation.status["resolved"]["objectCount"] == 3
    assert not simulation.jobs


def test_a_resolve_job_is_found_again_after_a_restart_and_not_made_twice() -> None:
    simulation = Simulation()
    simulation.settle()
    (job,) = simulation.active(names.ROLE_RESOLVE)
    simulation.status = {}
    simulation.settle()
    assert simulation.started == [job["metadata"]["name"]]


def test_a_list_that_fits_comes_by_the_termination_message_when_the_report_is_lost() -> None:
    simulation = Simulation()
    simulation.settle()
    (job,) = simulation.active(names.ROLE_RESOLVE)
    simulation.end(job, objects.resolved_report())
    simulation.settle()
    assert simulation.condition("Resolved")[0] == "True"


def test_a_list_that_got_lost_is_asked_for_again() -> None:
    simulation = Simulation()
    simulation.settle()
    (job,) = simulation.active(names.ROLE_RESOLVE)
    simulation.end(job, None)
    simulation.settle()
    assert simulation.condition("Resolved") == ("False", "ReportLost")
    simulation.wait(20)
    assert len(simulation.active(names.ROLE_RESOLVE)) == 1


@pytest.mark.parametrize(
    "lie",
    [
        contract.Report(digest="sha256:" + "0" * 64, resolved=objects.resolved_report().resolved),
        objects.resolved_report(bucket="elsewhere"),
    ],
    ids=["wrong digest", "another bucket"],
)
def test_a_resolve_report_that_lies_is_not_used(lie: contract.Report) -> None:
    simulation = Simulation()
    simulation.settle()
    (job,) = simulation.active(names.ROLE_RESOLVE)
    simulation.reports[job["metadata"]["uid"]] = lie
    simulation.end(job)
    simulation.settle()
    assert simulation.condition("Resolved") == ("False", "ReportContradictsItself")
    assert "resolved" not in simulation.status


def test_a_failed_resolve_is_retried_with_growing_delays_without_end_and_without_noise() -> None:
    simulation = Simulation()
    delays = []
    for _ in range(12):
        simulation.settle()
        (job,) = simulation.active(names.ROLE_RESOLVE)
        simulation.end(job, objects.failed_report("AccessDenied", "s3://models/llama/ says no."), code=10)
        decision = simulation.settle()
        assert decision.wake_after is not None
        delays.append(decision.wake_after)
        assert simulation.condition("Resolved") == ("False", "AccessDenied")
        simulation.wait(decision.wake_after)
    for index, delay in enumerate(delays):
        plain = min(300, 10 * 2**index)
        assert plain <= delay <= 1.2 * plain
    assert simulation.events.count("AccessDenied") == 1
    simulation.resolve()
    assert simulation.condition("Ready")[0] == "True"


def test_new_credentials_are_tried_at_once() -> None:
    simulation = Simulation({"credentials": {"secretRef": {"name": "old"}}})
    simulation.settle()
    (job,) = simulation.active(names.ROLE_RESOLVE)
    simulation.end(job, objects.failed_report("AccessDenied"), code=10)
    simulation.settle()
    simulation.spec = {"credentials": {"secretRef": {"name": "new"}}}
    simulation.settle()
    (job,) = simulation.active(names.ROLE_RESOLVE)
    assert job["metadata"]["annotations"][names.ATTEMPT] == "1"


def test_a_secret_that_is_missing_is_named_while_the_job_waits_for_it() -> None:
    simulation = Simulation({"credentials": {"secretRef": {"name": "s3-reader"}}})
    simulation.settle()
    (job,) = simulation.active(names.ROLE_RESOLVE)
    body = {
        "metadata": {"namespace": "serving", "name": "p", "uid": "u"},
        "status": {
            "phase": "Pending",
            "containerStatuses": [
                {
                    "name": names.LOADER_CONTAINER,
                    "state": {
                        "waiting": {
                            "reason": "CreateContainerConfigError",
                            "message": "couldn't find key AWS_SECRET_ACCESS_KEY in Secret serving/s3-reader",
                        }
                    },
                }
            ],
        },
    }
    simulation.pods[job["metadata"]["uid"]] = facts.pod_fact(body)
    simulation.settle()
    assert simulation.condition("Resolved") == ("False", "CredentialsMissing")
    (resolved,) = [each for each in simulation.status["conditions"] if each["type"] == "Resolved"]
    assert "AWS_SECRET_ACCESS_KEY in Secret serving/s3-reader" in resolved["message"]


def test_a_job_that_gets_no_pod_is_told() -> None:
    simulation = Simulation({"credentials": {"serviceAccountName": "nobody"}})
    simulation.settle()
    (job,) = simulation.active(names.ROLE_RESOLVE)
    simulation.wait(60)
    assert simulation.condition("Resolved") == ("False", "Resolving"), "Kubernetes may have much to do"
    job["status"] = {"startTime": format_time(simulation.now)}
    assert simulation.settle().wake_after == 15
    simulation.wait(15)
    assert simulation.condition("Resolved") == ("False", "PodNotCreated")
    simulation.reports[job["metadata"]["uid"]] = objects.resolved_report()
    simulation.end(job)
    simulation.settle()
    assert simulation.condition("Ready")[0] == "True"


def test_at_most_so_many_nodes_load_at_once_and_in_the_end_all_are_warm() -> None:
    simulation = _fleet(10, {"placement": {"maxConcurrentNodes": 3}})
    simulation.resolve()
    most = 0
    while loading := simulation.loading_nodes():
        most = max(most, len(loading))
        simulation.finish_loads(min(loading))
    assert most == 3
    assert simulation.status["nodes"] == {"desired": 10, "warm": 10, "loading": 0, "failed": 0, "summary": "10/10"}
    assert simulation.condition("Warm") == ("True", "AllNodesWarm")
    assert simulation.condition("Progressing") == ("False", "Idle")
    assert len(simulation.started) == 11
    assert not simulation.jobs


def test_one_warm_node_makes_it_ready_and_all_make_it_warm() -> None:
    simulation = _fleet(2)
    simulation.resolve()
    assert simulation.condition("Ready") == ("False", "PartiallyWarm")
    simulation.finish_loads("n0")
    assert simulation.condition("Ready") == ("True", "Warm")
    assert simulation.condition("Warm")[0] == "False"
    simulation.finish_loads()
    assert simulation.condition("Warm")[0] == "True"


def test_nothing_is_left_to_write_when_all_is_done() -> None:
    simulation = _fleet()
    simulation.resolve()
    simulation.finish_loads()
    before = simulation.status
    simulation.now += timedelta(days=1)
    decision = simulation.step()
    assert simulation.status == before
    assert (decision.apply, decision.delete, decision.events, decision.wake_after) == ((), (), (), None)


def test_a_new_node_is_loaded() -> None:
    simulation = _fleet(1)
    simulation.resolve()
    simulation.finish_loads()
    simulation.add_nodes("n9")
    simulation.settle()
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
def test_a_node_that_takes_no_pods_is_not_loaded(change: dict[str, Any]) -> None:
    simulation = _fleet(1)
    simulation.add_nodes("n9", **change)
    simulation.resolve()
    assert simulation.loading_nodes() == {"n0"}
    simulation.finish_loads()
    assert simulation.condition("Warm")[0] == "True"


def test_a_node_that_is_cordoned_while_it_loads_may_finish() -> None:
    simulation = _fleet(1)
    simulation.resolve()
    simulation.node_bodies["n0"]["spec"]["unschedulable"] = True
    simulation.settle()
    assert simulation.loading_nodes() == {"n0"}


def test_a_node_that_is_relabelled_away_stops_loading() -> None:
    simulation = _fleet(1, {"placement": {"nodeSelector": {"gpu": "true"}}})
    simulation.add_nodes("g0", labels={"gpu": "true"})
    simulation.resolve()
    assert simulation.loading_nodes() == {"g0"}
    simulation.node_bodies["g0"]["metadata"]["labels"]["gpu"] = "false"
    simulation.settle()
    assert simulation.loading_nodes() == set()
    assert simulation.condition("Warm") == ("False", "NoMatchingNodes")


def test_a_job_for_a_node_that_is_gone_goes_too() -> None:
    simulation = _fleet(2)
    simulation.resolve()
    del simulation.node_bodies["n0"]
    simulation.settle()
    assert simulation.loading_nodes() == {"n1"}


def test_a_reboot_empties_memory_and_is_loaded_again() -> None:
    simulation = _fleet(2)
    simulation.resolve()
    simulation.finish_loads()
    simulation.node_bodies["n1"]["status"]["nodeInfo"]["bootID"] = "boot-2"
    simulation.settle()
    assert simulation.loading_nodes() == {"n1"}
    assert simulation.status["nodes"]["summary"] == "1/2"
    assert simulation.condition("Ready")[0] == "True"


def test_a_reboot_while_it_loads_starts_over() -> None:
    simulation = _fleet(1)
    simulation.resolve()
    (job,) = simulation.active(names.ROLE_LOAD)
    simulation.node_bodies["n0"]["status"]["nodeInfo"]["bootID"] = "boot-2"
    simulation.end(job, contract.Report(outcome=contract.Outcome.LOADED, bytes=1))
    simulation.settle()
    (again,) = simulation.active(names.ROLE_LOAD)
    assert again["metadata"]["name"] != job["metadata"]["name"]
    assert simulation.status["nodes"]["warm"] == 0


def test_a_reboot_leaves_disks_as_they_are() -> None:
    simulation = _fleet(1, {"cache": {"medium": "Disk"}})
    simulation.resolve()
    simulation.finish_loads()
    simulation.node_bodies["n0"]["status"]["nodeInfo"]["bootID"] = "boot-2"
    simulation.settle()
    assert simulation.status["nodes"]["summary"] == "1/1"


def test_count_keeps_so_many_nodes_and_stays_with_those_it_has() -> None:
    simulation = _fleet(5, {"placement": {"prewarm": "Count", "count": 2}})
    simulation.resolve()
    first = simulation.loading_nodes()
    assert len(first) == 2
    simulation.finish_loads()
    simulation.add_nodes(*(f"m{index}" for index in range(20)))
    simulation.settle()
    assert simulation.loading_nodes() == set()
    assert simulation.condition("Warm") == ("True", "AllNodesWarm")
    del simulation.node_bodies[min(first)]
    simulation.settle()
    assert len(simulation.loading_nodes()) == 1


def test_more_nodes_than_there_are_is_said() -> None:
    simulation = _fleet(1, {"placement": {"prewarm": "Count", "count": 2}})
    simulation.resolve()
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
    simulation = _fleet(2)
    simulation.resolve()
    for attempt in (1, 2, 3):
        (job,) = [job for job in simulation.active(names.ROLE_LOAD) if simulation.target(job) == "n1"]
        assert job["metadata"]["annotations"][names.ATTEMPT] == str(attempt)
        simulation.end(job, report, code=code, reason=reason)
        simulation.settle()
        (failure,) = simulation.status["failures"]
        assert (failure["node"], failure["reason"], failure["attempts"]) == ("n1", expected, attempt)
        assert simulation.condition("Degraded") == ("True", "NodeLoadFailed")
        simulation.wait(400)
    assert simulation.events.count(expected) == 1
    simulation.finish_loads()
    assert simulation.status["nodes"]["summary"] == "2/2"
    assert "failures" not in simulation.status
    assert simulation.condition("Degraded") == ("False", "AllNodesHealthy")


def test_a_loader_that_was_killed_for_memory_is_told_of_with_its_numbers() -> None:
    simulation = _fleet(1, {"cache": {"medium": "Disk"}, "loader": {"resources": {"limits": {"memory": "1Gi"}}}})
    simulation.resolve()
    (job,) = simulation.active(names.ROLE_LOAD)
    simulation.end(job, code=137, reason="OOMKilled")
    simulation.settle()
    (failure,) = simulation.status["failures"]
    assert "its limit is 1Gi, and 2Gi are to be written" in failure["message"]


def test_a_failing_node_does_not_hold_up_the_others() -> None:
    simulation = _fleet(3, {"placement": {"maxConcurrentNodes": 1}})
    simulation.resolve()
    (job,) = simulation.active(names.ROLE_LOAD)
    simulation.end(job, objects.failed_report("CacheNotWritable"), code=28)
    simulation.settle()
    assert simulation.loading_nodes()
    assert simulation.target(job) not in simulation.loading_nodes()


def test_a_job_whose_pod_vanished_counts_as_evicted() -> None:
    simulation = _fleet(1)
    simulation.resolve()
    (job,) = simulation.active(names.ROLE_LOAD)
    simulation.end(job, code=1)
    simulation.pods.clear()
    simulation.settle()
    assert "failures" not in simulation.status, "its last words may still come"
    simulation.wait(15)
    assert simulation.status["failures"][0]["reason"] == "LoaderEvicted"


def test_failures_are_capped_and_counted() -> None:
    simulation = _fleet(30, {"placement": {"maxConcurrentNodes": 30}})
    simulation.resolve()
    for job in simulation.active(names.ROLE_LOAD):
        simulation.end(job, objects.failed_report("AccessDenied"), code=10)
    simulation.settle()
    assert len(simulation.status["failures"]) == 10
    assert simulation.status["nodes"]["failed"] == 30


def test_suspended_starts_nothing_and_keeps_what_is_there() -> None:
    simulation = _fleet(2)
    simulation.resolve()
    simulation.finish_loads("n0")
    simulation.spec["suspend"] = True
    simulation.add_nodes("n5")
    running = simulation.loading_nodes()
    simulation.settle()
    assert simulation.loading_nodes() == running
    simulation.finish_loads()
    assert simulation.condition("Progressing") == ("False", "Suspended")
    assert simulation.condition("Ready")[0] == "True"


def test_progress_is_that_of_the_slowest_node() -> None:
    simulation = _fleet(2)
    simulation.resolve()
    for index, job in enumerate(sorted(simulation.active(names.ROLE_LOAD), key=simulation.target)):
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
    simulation.settle()
    assert simulation.status["progress"]["node"] == "n0"
    assert simulation.status["progress"]["eta"] == "2m10s"
    assert simulation.status["progressSummary"] == "10%"


def test_pinned_never_looks_again_and_track_does_on_its_interval() -> None:
    simulation = Simulation()
    simulation.resolve()
    simulation.wait(10**6)
    assert len(simulation.started) == 1
    simulation = Simulation({"revision": {"policy": "Track", "interval": "10m"}})
    simulation.resolve()
    assert simulation.settle().wake_after == 600
    simulation.wait(599)
    assert len(simulation.started) == 1
    simulation.wait(2)
    assert len(simulation.started) == 2


def test_a_new_revision_is_shown_and_waits_for_a_pin() -> None:
    simulation = _fleet(1, {"revision": {"policy": "Track", "interval": "10m"}})
    simulation.resolve()
    simulation.finish_loads()
    old = simulation.status["resolved"]["revision"]
    simulation.wait(601)
    simulation.resolve("2")
    new = simulation.status["available"]["revision"]
    assert simulation.status["resolved"]["revision"] == old != new
    assert simulation.condition("UpdateAvailable") == ("True", "SourceChanged")
    assert simulation.loading_nodes() == set()
    simulation.spec["revision"]["pin"] = new
    simulation.settle()
    assert simulation.status["resolved"]["revision"] == new
    assert simulation.loading_nodes() == {"n0"}
    assert simulation.condition("UpdateAvailable")[0] == "False"
    assert "RevisionChanged" in simulation.events
    simulation.spec["revision"]["pin"] = old
    simulation.settle()
    assert simulation.status["resolved"]["revision"] == old
    assert simulation.status["available"]["revision"] == new


def test_a_pin_that_was_never_seen_is_refused_with_those_that_were() -> None:
    simulation = Simulation({"revision": {"pin": "r-000000000000"}})
    simulation.resolve()
    assert simulation.condition("Resolved") == ("False", "PinUnknown")
    assert simulation.condition("Ready")[0] == "False"


def test_an_automatic_update_warms_the_new_revision_beside_the_old_and_then_moves() -> None:
    simulation = _fleet(2, {"revision": {"policy": "Track", "interval": "10m", "update": "Automatic"}})
    simulation.resolve()
    simulation.finish_loads()
    old = simulation.status["resolved"]["revision"]
    simulation.wait(601)
    simulation.resolve("2")
    assert simulation.status["resolved"]["revision"] == old
    assert simulation.condition("Progressing") == ("True", "Updating")
    assert simulation.condition("Ready") == ("True", "Warm")
    assert {entry.name for entry in simulation.caches["n0"].entries or ()} == {
        old,
        simulation.status["available"]["revision"],
    }
    simulation.finish_loads()
    assert simulation.status["resolved"]["revision"] != old
    assert "available" not in simulation.status
    assert simulation.condition("Warm")[0] == "True"
    (history,) = simulation.status["history"]
    assert history["revision"] == old


def test_another_source_is_resolved_anew_and_its_old_loads_stop() -> None:
    simulation = _fleet(1)
    simulation.resolve()
    assert simulation.loading_nodes()
    simulation.spec["source"] = {"s3": {"bucket": "models", "prefix": "other/"}}
    simulation.settle()
    assert simulation.condition("Resolved") == ("False", "Resolving")
    assert simulation.loading_nodes() == set()


def test_an_expected_digest_refuses_anything_else() -> None:
    simulation = Simulation()
    simulation.resolve()
    simulation.spec["revision"] = {"expectedDigest": "sha256:" + "0" * 64}
    simulation.settle()
    assert simulation.condition("Resolved") == ("False", "DigestMismatch")
    assert simulation.condition("Ready") == ("False", "DigestMismatch")


def test_a_medium_that_is_not_offered_is_refused() -> None:
    installation = objects.INSTALLATION.model_copy(update={"media": {}})
    simulation = Simulation(installation=installation)
    simulation.settle()
    assert simulation.condition("Accepted") == ("False", "MediumNotConfigured")
    assert not simulation.jobs


def test_a_huge_list_is_pinned_by_its_digest() -> None:
    simulation = _fleet(1)
    simulation.settle()
    (job,) = simulation.active(names.ROLE_RESOLVE)
    report = objects.resolved_report(count=2500)
    simulation.reports[job["metadata"]["uid"]] = report
    simulation.end(job)
    simulation.settle()
    assert "objects" not in simulation.status["resolved"]
    assert simulation.status["resolved"]["objectCount"] == 2501
    (load,) = simulation.active(names.ROLE_LOAD)
    plan = jobs.encoded_plan(load)
    assert plan.expected_digest == report.digest
    assert plan.sources[0].objects is None


def _consumer(simulation: Simulation, node: str, *, started: bool = True) -> facts.Pod:
    revision = simulation.status["resolved"]["revision"]
    claim = Claim(
        container=names.LOADER_CONTAINER,
        namespace="serving",
        name="llama",
        uid=objects.UID,
        revision=revision,
        key=revision,
        bytes=2 * objects.GIB,
    )
    return facts.Pod(
        namespace="serving",
        name="p",
        uid="pu",
        role=names.ROLE_INJECTED,
        model_uid="",
        job_uid="",
        node=node,
        phase="Running",
        reason="",
        message="",
        created="2026-01-01T00:00:00Z",
        unschedulable="",
        claims=(claim,),
        loaders=(facts.Loader(names.LOADER_CONTAINER, started, None, "", ""),),
        deleting=False,
    )


def test_a_pod_that_loaded_by_itself_makes_its_node_warm() -> None:
    simulation = Simulation()
    simulation.add_nodes("n0")
    simulation.resolve()
    simulation.consumers = [_consumer(simulation, "n0", started=False)]
    simulation.settle()
    (entry,) = simulation.caches["n0"].entries or ()
    assert entry.state is EntryState.LOADING
    simulation.consumers = [_consumer(simulation, "n0")]
    simulation.settle()
    (entry,) = simulation.caches["n0"].entries or ()
    assert (entry.state, entry.bytes, entry.models) == (EntryState.READY, 2 * objects.GIB, ("serving/llama",))
    assert simulation.status["consumers"] == {"pods": 1, "namespaces": 1}
    assert simulation.condition("Ready") == ("True", "Warm")


def test_deletion_empties_every_node_and_then_lets_go() -> None:
    simulation = _fleet(2)
    simulation.resolve()
    simulation.finish_loads()
    assert "Emptying its cache entries on 2 nodes" in simulation.farewell().waiting
    cleanups = simulation.active(names.ROLE_CLEANUP)
    assert {simulation.target(job) for job in cleanups} == {"n0", "n1"}
    for job in cleanups:
        simulation.end(job)
    simulation.farewell()
    assert simulation.farewell().waiting == ""
    assert not simulation.jobs
    assert all(not cache.entries for cache in simulation.caches.values())


def test_deletion_in_the_middle_of_a_load_leaves_no_bytes_behind() -> None:
    simulation = _fleet(1)
    simulation.resolve()
    simulation.farewell()
    assert simulation.loading_nodes() == set()
    simulation.farewell()
    (job,) = simulation.active(names.ROLE_CLEANUP)
    simulation.end(job)
    simulation.farewell()
    assert simulation.farewell().waiting == ""


def test_deletion_waits_until_a_running_load_is_on_record() -> None:
    simulation = _fleet(1)
    simulation.resolve()
    simulation.caches.clear()
    simulation.deleting = True
    farewell = decide_farewell(simulation.world())
    assert farewell.delete == ()
    assert "on record" in farewell.waiting


@pytest.mark.parametrize("dead", ["gone", "not ready"])
def test_deletion_is_never_stuck_on_a_dead_node(dead: str) -> None:
    simulation = _fleet(1)
    simulation.resolve()
    simulation.finish_loads()
    if dead == "gone":
        del simulation.node_bodies["n0"]
    else:
        simulation.node_bodies["n0"] = objects.node("n0", ready=False)
    simulation.farewell()
    assert simulation.farewell().waiting == ""
    if dead == "not ready":
        (entry,) = simulation.caches["n0"].entries or ()
        assert entry.models == ()
        simulation.node_bodies["n0"] = objects.node("n0")
        simulation.record()
        assert len(simulation.active(names.ROLE_CLEANUP)) == 1, "it is emptied when the node comes back"


def test_deletion_lets_pods_keep_their_bytes_and_empties_them_later() -> None:
    simulation = _fleet(1)
    simulation.resolve()
    simulation.finish_loads()
    simulation.consumers = [_consumer(simulation, "n0")]
    simulation.farewell()
    assert simulation.farewell().waiting == ""
    assert not simulation.active(names.ROLE_CLEANUP)
    (entry,) = simulation.caches["n0"].entries or ()
    assert entry.state is EntryState.READY
    simulation.consumers = []
    simulation.record()
    assert len(simulation.active(names.ROLE_CLEANUP)) == 1


def test_deletion_gives_up_on_a_node_where_cleaning_fails_but_the_node_goes_on_trying() -> None:
    simulation = _fleet(1)
    simulation.resolve()
    simulation.finish_loads()
    for _ in range(3):
        assert simulation.farewell().waiting or simulation.active(names.ROLE_CLEANUP)
        simulation.record()
        (job,) = simulation.active(names.ROLE_CLEANUP)
        simulation.end(job, code=30)
        simulation.now += timedelta(seconds=400)
    simulation.farewell()
    assert simulation.farewell().waiting == ""
    assert simulation.active(names.ROLE_CLEANUP)


def test_the_old_revision_is_emptied_once_no_pod_holds_it() -> None:
    simulation = _fleet(1, {"revision": {"policy": "Track", "interval": "10m", "update": "Automatic"}})
    simulation.resolve()
    simulation.finish_loads()
    old = simulation.status["resolved"]["revision"]
    simulation.consumers = [_consumer(simulation, "n0")]
    simulation.wait(601)
    simulation.resolve("2")
    simulation.finish_loads()
    assert simulation.status["resolved"]["revision"] != old
    assert not simulation.active(names.ROLE_CLEANUP)
    simulation.consumers = []
    simulation.settle()
    (job,) = simulation.active(names.ROLE_CLEANUP)
    assert job["metadata"]["annotations"][names.CACHE_KEY] == old
    simulation.end(job)
    simulation.settle()
    assert [entry.name for entry in simulation.caches["n0"].entries or ()] == [
        simulation.status["resolved"]["revision"]
    ]
    assert not simulation.jobs


def test_an_evictable_entry_stays_until_its_room_is_needed() -> None:
    simulation = _fleet(1, {"cache": {"retention": "Evictable"}})
    simulation.resolve()
    simulation.finish_loads()
    old = simulation.status["resolved"]["revision"]
    simulation.spec["source"] = {"s3": {"bucket": "models", "prefix": "other/"}}
    simulation.resolve("2")
    assert not simulation.active(names.ROLE_CLEANUP)
    (job,) = simulation.active(names.ROLE_LOAD)
    simulation.end(job, objects.failed_report("InsufficientSpace"), code=27)
    simulation.settle()
    (cleanup,) = simulation.active(names.ROLE_CLEANUP)
    assert cleanup["metadata"]["annotations"][names.CACHE_KEY] == old


def test_names_that_do_not_fit_labels_are_cut_and_stay_distinct() -> None:
    first = objects.weights(name="a" * 250 + ".x")
    second = objects.weights(name="a" * 250 + ".y", uid="other")
    made = [jobs.resolve_job(each, objects.INSTALLATION, round_="", attempt=1) for each in (first, second)]
    names_ = {job["metadata"]["name"] for job in made}
    assert len(names_) == 2
    assert all(len(name) <= 63 for name in names_)
    assert all(len(value) <= 63 for job in made for value in job["metadata"]["labels"].values())
