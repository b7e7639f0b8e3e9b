"""Resolve Jobs: when they run, their results, and how failures are reported."""

from __future__ import annotations

import math
from typing import Any

import pytest

from operator_support import objects
from operator_support.simulation import Simulation
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.domain.observed import remedies
from tonnage_operator.domain.observed.pod import parse_pod
from tonnage_operator.domain.units import format_time


def test_an_object_with_only_a_source_is_resolved_and_then_ready() -> None:
    simulation = Simulation()
    simulation.add_nodes("n0")
    simulation.converge()
    assert simulation.condition("Resolved") == ("False", "Resolving")
    simulation.finish_resolve()
    assert simulation.condition("Ready") == ("True", "LoadedOnDemand")
    assert simulation.condition("Warm") == ("True", "NothingToPrewarm")
    assert simulation.status["size"] == "2Gi"
    assert simulation.status["resolved"]["objectCount"] == 3
    assert not simulation.jobs


def test_a_resolve_job_is_found_after_a_restart_and_not_created_twice() -> None:
    simulation = Simulation()
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    simulation.status = {}
    simulation.converge()
    assert simulation.started_jobs == [job["metadata"]["name"]]


def test_a_short_list_comes_from_the_termination_message_if_the_report_is_lost() -> None:
    simulation = Simulation()
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    simulation.finish_job(job, objects.resolved_report())
    simulation.converge()
    assert simulation.condition("Resolved")[0] == "True"


def test_a_lost_object_list_is_resolved_again() -> None:
    simulation = Simulation()
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    simulation.finish_job(job, None)
    simulation.converge()
    assert simulation.condition("Resolved") == ("False", "ReportLost")
    simulation.advance(20)
    assert len(simulation.active_jobs(names.ROLE_RESOLVE)) == 1


@pytest.mark.parametrize(
    "lie",
    [
        contract.Report(digest="sha256:" + "0" * 64, resolved=objects.resolved_report().resolved),
        objects.resolved_report(bucket="elsewhere"),
    ],
    ids=["wrong digest", "another bucket"],
)
def test_an_inconsistent_resolve_report_is_not_used(lie: contract.Report) -> None:
    simulation = Simulation()
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    simulation.reports[job["metadata"]["uid"]] = lie
    simulation.finish_job(job)
    simulation.converge()
    assert simulation.condition("Resolved") == ("False", "ReportContradictsItself")
    assert "resolved" not in simulation.status


@pytest.mark.parametrize(
    "files",
    [{"exclude": ["model-1.tensors"]}, {"tensors": ["model-0.tensors"]}, {"companions": ["tokenizer*"]}],
    ids=["excluded", "no tensor file that counts", "no companion that counts"],
)
def test_a_resolve_report_lists_only_what_the_files_of_the_spec_select(files: dict[str, list[str]]) -> None:
    simulation = Simulation({"files": files})
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    simulation.reports[job["metadata"]["uid"]] = objects.resolved_report()
    simulation.finish_job(job)
    simulation.converge()
    assert simulation.condition("Resolved") == ("False", "ReportContradictsItself")
    assert "resolved" not in simulation.status


def test_a_failed_resolve_is_retried_forever_with_backoff_and_without_new_events() -> None:
    simulation = Simulation()
    delays = []
    for _ in range(12):
        simulation.converge()
        (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
        simulation.finish_job(job, objects.failed_report("AccessDenied", "s3://models/llama/ denied access."), code=10)
        decision = simulation.converge()
        assert decision.requeue_after is not None
        delays.append(decision.requeue_after)
        assert simulation.condition("Resolved") == ("False", "AccessDenied")
        simulation.advance(math.ceil(decision.requeue_after))  # times of Jobs are whole seconds
    for index, delay in enumerate(delays):
        plain = min(300, 10 * 2**index)
        assert plain <= delay <= 1.2 * plain
    assert simulation.events.count("AccessDenied") == 1
    simulation.finish_resolve()
    assert simulation.condition("Ready")[0] == "True"


def test_new_credentials_are_used_without_backoff() -> None:
    simulation = Simulation({"credentials": {"secretRef": {"name": "old"}}})
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    simulation.finish_job(job, objects.failed_report("AccessDenied"), code=10)
    simulation.converge()
    simulation.spec = {"credentials": {"secretRef": {"name": "new"}}}
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    assert job["metadata"]["annotations"][names.ATTEMPT] == "1"


def test_a_missing_secret_is_named_while_the_job_waits_for_it() -> None:
    simulation = Simulation({"credentials": {"secretRef": {"name": "s3-reader"}}})
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
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
    simulation.pods[job["metadata"]["uid"]] = parse_pod(body)
    simulation.converge()
    assert simulation.condition("Resolved") == ("False", "CredentialsMissing")
    (resolved,) = [each for each in simulation.status["conditions"] if each["type"] == "Resolved"]
    assert "AWS_SECRET_ACCESS_KEY in Secret serving/s3-reader" in resolved["message"]


def test_a_job_without_a_pod_is_reported() -> None:
    simulation = Simulation({"credentials": {"serviceAccountName": "missing"}})
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    simulation.advance(60)
    assert simulation.condition("Resolved") == ("False", "Resolving"), "Kubernetes may have much to do"
    job["status"] = {"startTime": format_time(simulation.now)}
    assert simulation.converge().requeue_after == 15
    simulation.advance(15)
    assert simulation.condition("Resolved") == ("False", "PodNotCreated")
    simulation.reports[job["metadata"]["uid"]] = objects.resolved_report()
    simulation.finish_job(job)
    simulation.converge()
    assert simulation.condition("Ready")[0] == "True"


def test_a_missing_ca_is_named_after_a_minute_and_the_job_continues_once_it_exists() -> None:
    simulation = Simulation({"source": {"s3": {"caBundle": {"configMapKeyRef": {"name": "corp-ca", "key": "ca.crt"}}}}})
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    owner = {"kind": "Job", "uid": job["metadata"]["uid"], "controller": True}
    body = {
        "metadata": {"namespace": "serving", "name": "p", "uid": "u", "ownerReferences": [owner]},
        "spec": job["spec"]["template"]["spec"],
        "status": {
            "phase": "Pending",
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": format_time(simulation.now)}
            ],
            "containerStatuses": [
                {"name": names.LOADER_CONTAINER, "state": {"waiting": {"reason": "ContainerCreating"}}}
            ],
        },
    }
    simulation.pods[job["metadata"]["uid"]] = parse_pod(body)
    assert simulation.converge().requeue_after == 60
    assert simulation.condition("Resolved") == ("False", "Resolving"), "its image may be on its way"
    simulation.advance(60)
    assert simulation.condition("Resolved") == ("False", "ContainerNotStarted")
    (resolved,) = [each for each in simulation.status["conditions"] if each["type"] == "Resolved"]
    assert "ConfigMap corp-ca with key ca.crt" in resolved["message"]
    simulation.finish_job(job, objects.resolved_report())
    simulation.converge()
    assert simulation.condition("Ready")[0] == "True"


@pytest.mark.parametrize(
    "reason", ["BucketNotFound", "ObjectNotFound", "EndpointUnreachable", "TLSVerificationFailed", "NoTensorFiles"]
)
def test_every_source_error_is_reported_with_a_remedy(reason: str) -> None:
    simulation = Simulation()
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    simulation.finish_job(job, objects.failed_report(reason, "As the source reports."), code=1)
    simulation.converge()
    assert simulation.condition("Resolved") == ("False", reason)
    assert simulation.condition("Warm") == ("False", "NotResolved")
    assert simulation.condition("Progressing") == ("False", "Backoff")
    (resolved,) = [each for each in simulation.status["conditions"] if each["type"] == "Resolved"]
    assert remedies.remedy(reason, "") in resolved["message"]


def test_require_without_prewarming_is_reported_as_impossible() -> None:
    simulation = Simulation({"placement": {"scheduling": "Require"}})
    simulation.finish_resolve()
    assert simulation.condition("Ready") == ("False", "NoWarmNode")
    assert simulation.condition("UpdateAvailable") == ("False", "UpToDate")


def test_an_image_that_cannot_be_pulled_is_reported() -> None:
    simulation = Simulation()
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    waiting = {"reason": "ImagePullBackOff", "message": "manifest unknown"}
    status = {"containerStatuses": [{"name": names.LOADER_CONTAINER, "state": {"waiting": waiting}}]}
    body = {"metadata": {"namespace": "serving", "name": "p", "uid": "u"}, "status": status}
    simulation.pods[job["metadata"]["uid"]] = parse_pod(body)
    simulation.converge()
    assert simulation.condition("Resolved") == ("False", "ContainerNotStarted")


def test_a_source_that_becomes_unavailable_leaves_the_revision_in_use() -> None:
    simulation = Simulation({"revision": {"policy": "Track", "interval": "10m"}})
    simulation.finish_resolve()
    simulation.advance(601)
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    simulation.finish_job(job, objects.failed_report("BucketNotFound", "No such bucket."), code=12)
    simulation.converge()
    assert simulation.condition("Ready")[0] == "True"
    (resolved,) = [each for each in simulation.status["conditions"] if each["type"] == "Resolved"]
    assert resolved["status"] == "True"
    assert "BucketNotFound: No such bucket." in resolved["message"]


@pytest.mark.parametrize(
    "source",
    [
        {"s3": {"bucket": "models", "keys": [f"{index:03}" * 340 for index in range(120)]}},
        {"http": {"urls": [f"https://host/{index:03}/" + "x" * 2000 for index in range(60)]}},
    ],
    ids=["keys", "urls"],
)
def test_a_source_that_is_too_long_for_a_plan_is_rejected_with_a_remedy(source: dict[str, Any]) -> None:
    simulation = Simulation()
    simulation.spec = {"source": {"s3": None, **source}}
    if "s3" in source:
        simulation.spec["source"]["s3"]["prefix"] = None
    simulation.converge()
    assert simulation.condition("Accepted") == ("False", "SpecTooLarge")
    assert "prefix instead of keys" in simulation.status["conditions"][0]["message"]
    assert not simulation.jobs
