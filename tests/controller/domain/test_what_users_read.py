"""What a status shows of failures, and that each sentence names something that its reader can do."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from operator_support import objects
from operator_support.simulation import Simulation, consumer_pod, ended_pod, failing_pod, prewarming_simulation
from tonnage import contract
from tonnage.contract.report import OMITTED_OBJECTS_NOTE
from tonnage.errors import CHANGED_SINCE_LISTED, Reason, error_classes
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.domain.nodecache.reconcile import decide_node
from tonnage_operator.domain.nodecache.snapshot import NodeSnapshot
from tonnage_operator.domain.observed.job import parse_job
from tonnage_operator.domain.observed.model_weights import parse_model_weights
from tonnage_operator.domain.observed.remedies import REMEDIES, remedy
from tonnage_operator.domain.specs.jobs import build_resolve_job


def _message(simulation: Simulation, kind: str) -> str:
    text: str = next(each["message"] for each in simulation.status["conditions"] if each["type"] == kind)
    return text


def _lazy(**spec: Any) -> Simulation:
    simulation = Simulation(spec)
    simulation.add_nodes("n0", "n1")
    simulation.finish_resolve()
    return simulation


def test_a_failing_loader_in_a_pod_reaches_the_object() -> None:
    simulation = _lazy()
    assert simulation.condition("Ready") == ("True", "LoadedOnDemand")
    simulation.events.clear()
    simulation.consumers = [failing_pod(simulation, "n0")]
    simulation.converge()
    assert simulation.condition("Ready") == ("False", "ChecksumMismatch")
    assert simulation.condition("Degraded") == ("True", "PodLoadFailed")
    (failure,) = simulation.status["failures"]
    assert (failure["node"], failure["pod"], failure["reason"]) == ("n0", "serving/p", "ChecksumMismatch")
    assert failure["attempts"] == 3
    assert "serving/p on n0 failed: ChecksumMismatch" in _message(simulation, "Degraded")
    assert simulation.status["consumers"] == {"pods": 1, "namespaces": 1, "failing": 1}
    assert simulation.events.count("PodLoadFailed") == 1
    simulation.consumers = [consumer_pod(simulation, "n0")]
    simulation.converge()
    assert simulation.condition("Ready") == ("True", "Warm")
    assert simulation.condition("Degraded") == ("False", "AllNodesHealthy")
    assert "failures" not in simulation.status


def test_many_failing_pods_cause_one_event() -> None:
    simulation = _lazy()
    simulation.events.clear()
    simulation.consumers = [
        failing_pod(simulation, f"n{index % 2}", uid=f"u{index}", name=f"p{index}") for index in range(40)
    ]
    simulation.converge()
    assert [each for each in simulation.events if each != "ChecksumMismatch"] == ["PodLoadFailed"]
    assert len(simulation.status["failures"]) == 2
    assert "Loaders of 40 pods have failed" in _message(simulation, "Degraded")


def test_an_overwritten_source_is_not_ready_although_nodes_are_warm() -> None:
    simulation = prewarming_simulation(2)
    simulation.finish_resolve()
    simulation.finish_loads()
    assert simulation.condition("Ready") == ("True", "Warm")
    report = objects.failed_report("SourceChanged")
    simulation.consumers = [failing_pod(simulation, "n0", report)]
    simulation.converge()
    assert simulation.condition("Ready") == ("False", "SourceChanged")
    assert "spec.revision.policy" in _message(simulation, "Ready")
    simulation.consumers = [failing_pod(simulation, "n0")]
    simulation.converge()
    assert simulation.condition("Ready") == ("True", "Warm"), "one node's damaged file doesn't concern the others"
    assert simulation.condition("Degraded") == ("True", "PodLoadFailed")


def test_a_pod_on_a_cold_node_whose_bucket_has_changed_names_what_helps() -> None:
    simulation = _lazy()
    message = f"{CHANGED_SINCE_LISTED} for serving/llama: objects were added, overwritten or removed."
    report = structs.replace(objects.failed_report("DigestMismatch"), message=message)
    simulation.consumers = [failing_pod(simulation, "n0", report)]
    simulation.converge()
    assert simulation.condition("Ready") == ("False", "DigestMismatch")
    assert "create the pod again once the status has the new revision" in _message(simulation, "Ready")
    assert "create the pod again" in _message(simulation, "Degraded")
    assert "expectedDigest" not in _message(simulation, "Ready")


@pytest.mark.parametrize("access", ["Same", "All"])
def test_pods_of_other_namespaces_count_only_where_they_may_use_the_object(access: str) -> None:
    simulation = _lazy(access={"allowedNamespaces": {"from": access}})
    simulation.consumers = [failing_pod(simulation, "n0", objects.failed_report("SourceChanged"), namespace="other")]
    simulation.converge()
    assert simulation.condition("Degraded")[0] == ("True" if access == "All" else "False")
    assert simulation.condition("Ready") == ("True", "LoadedOnDemand"), "another namespace can't make it unready"


def test_a_pod_that_ended_counts_until_a_later_one_is_ready() -> None:
    simulation = _lazy()
    ended = failing_pod(simulation, "n0")
    ended = replace(ended, phase="Failed", created="2026-01-01T00:00:00Z")
    simulation.consumers = [ended]
    simulation.converge()
    assert simulation.condition("Degraded")[0] == "True"
    later = replace(consumer_pod(simulation, "n0"), uid="later", created="2026-01-01T00:01:00Z")
    simulation.consumers = [ended, later]
    simulation.converge()
    assert simulation.condition("Degraded")[0] == "False"


def test_a_pod_that_lacks_a_secret_is_reported_with_its_name() -> None:
    simulation = _lazy()
    pod = failing_pod(simulation, "n0")
    waiting = replace(
        pod.loaders[0],
        terminated=None,
        waiting_reason="CreateContainerConfigError",
        waiting_message='secret "s3-reader" not found',
    )
    simulation.consumers = [replace(pod, loaders=(waiting,))]
    simulation.converge()
    assert simulation.condition("Degraded") == ("True", "PodLoadFailed")
    assert 'CredentialsMissing: The loader can\'t start: secret "s3-reader" not found' in _message(
        simulation, "Degraded"
    )


def test_a_pods_failure_is_not_taken_for_one_of_a_load_job() -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve()
    (job,) = simulation.active_jobs(names.ROLE_LOAD)
    simulation.consumers = [failing_pod(simulation, "n0")]
    simulation.finish_job(job, objects.failed_report("AccessDenied"), code=10)
    simulation.converge()
    (failure,) = simulation.status["failures"]
    assert (failure["reason"], failure.get("pod")) == ("AccessDenied", None)


@pytest.mark.parametrize(("code", "signal"), [(137, "SIGKILL"), (143, "SIGTERM")])
def test_a_loader_that_was_killed_is_not_called_a_bug(code: int, signal: str) -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve()
    (job,) = simulation.active_jobs(names.ROLE_LOAD)
    simulation.finish_job(job, None, code=code)
    simulation.converge()
    (failure,) = simulation.status["failures"]
    assert failure["reason"] == "LoaderKilled"
    assert signal in failure["message"]
    simulation.consumers = [failing_pod(simulation, "n0", exit_code=code)]
    simulation.jobs.clear()
    simulation.converge()
    assert "LoaderKilled" in _message(simulation, "Degraded") + simulation.status["failures"][0]["reason"]


def test_a_suspended_object_without_a_revision_is_suspended_and_shows_how_to_continue() -> None:
    simulation = Simulation({"suspend": True})
    simulation.converge()
    assert not simulation.jobs
    for kind in ("Resolved", "Ready"):
        assert simulation.condition(kind) == ("False", "Suspended")
        assert "kubectl patch mw -n serving llama" in _message(simulation, kind)
    assert "Job" not in _message(simulation, "Ready")
    simulation.spec["suspend"] = False
    simulation.converge()
    assert simulation.condition("Resolved") == ("False", "Resolving")


def test_a_suspended_object_whose_resolve_failed_shows_both() -> None:
    simulation = Simulation()
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    simulation.finish_job(job, objects.failed_report("AccessDenied"), code=10)
    simulation.spec["suspend"] = True
    simulation.converge()
    assert simulation.condition("Resolved") == ("False", "AccessDenied")
    assert "kubectl patch mw" in _message(simulation, "Resolved")
    assert "Next attempt" not in _message(simulation, "Resolved")


def test_a_job_that_a_queue_suspends_is_reported_with_what_to_set() -> None:
    simulation = Simulation()
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    job["spec"]["suspend"] = True
    simulation.advance(7200)
    assert simulation.condition("Resolved") == ("False", "JobSuspended")
    assert "loader.jobs.labels" in _message(simulation, "Ready")
    job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpus"
    simulation.converge()
    assert "the queue gpus of Kueue" in _message(simulation, "Ready")
    del job["spec"]["suspend"]
    simulation.converge()
    assert simulation.condition("Resolved") == ("False", "Resolving")


def _failed_resolve(reason: str = "EndpointUnreachable", message: str = "As reported.") -> Simulation:
    simulation = Simulation()
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    simulation.finish_job(job, objects.failed_report(reason, message), code=10)
    simulation.converge()
    return simulation


def test_a_failed_attempt_shows_when_the_next_one_comes_and_how_to_start_it() -> None:
    simulation = _failed_resolve()
    found = re.search(r"attempt 1\. Next attempt at (2026-01-01T00:00:1[0-2]Z)", _message(simulation, "Resolved"))
    assert found
    assert "kubectl annotate mw -n serving llama --overwrite tonnage.dev/retry=" in _message(simulation, "Resolved")
    simulation.advance(3)
    assert found[1] in _message(simulation, "Resolved"), "the time doesn't move"
    simulation.advance(10)
    assert len(simulation.active_jobs(names.ROLE_RESOLVE)) == 1


class _Annotated(Simulation):
    """A simulation whose object has the annotation ``tonnage.dev/retry``."""

    retry = ""

    @property
    def weights(self) -> Any:
        body = objects.modelweights_manifest(self.spec, status=dict(self.status), annotations={names.RETRY: self.retry})
        return parse_model_weights(body)


def test_a_new_value_of_the_annotation_starts_the_next_attempt_once() -> None:
    simulation = _Annotated()
    simulation.converge()
    for attempt, value in enumerate(("a", "b", "a"), 1):
        (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
        simulation.finish_job(job, objects.failed_report("AccessDenied"), code=10)
        simulation.converge()
        assert not simulation.active_jobs(names.ROLE_RESOLVE), f"attempt {attempt} waits"
        simulation.retry = value
        simulation.converge()
        assert len(simulation.active_jobs(names.ROLE_RESOLVE)) == 1


def test_the_annotation_starts_failed_loads_too() -> None:
    simulation = _Annotated({"placement": {"prewarm": "AllMatching"}})
    simulation.add_nodes("n0", "n1")
    simulation.finish_resolve()
    for job in simulation.active_jobs(names.ROLE_LOAD):
        simulation.finish_job(job, objects.failed_report("RetriesExhausted"), code=33)
    simulation.converge()
    assert not simulation.loading_nodes()
    assert all("nextAttemptTime" in each for each in simulation.status["failures"])
    simulation.retry = "now"
    simulation.converge()
    assert simulation.loading_nodes() == {"n0", "n1"}


@pytest.mark.parametrize("reason", [each for each in Reason if each is not Reason.INTERNAL_ERROR])
def test_a_remedy_in_a_status_names_no_option_of_the_command_line(reason: Reason) -> None:
    sentence = remedy(reason, "")
    assert sentence
    assert not re.search(r"--[a-z]|\$|`tonnage", sentence)
    assert sentence.endswith(".")
    assert set(REMEDIES) == set(error_classes())


@pytest.mark.parametrize(
    "message",
    [
        "s3://b/m/: the signature does not match (403 SignatureDoesNotMatch).",
        "s3://b/m/: the access key does not exist in the store (401 Unauthorized).",
        "Can't load credentials from the role of the profile: AssumeRole failed with InvalidClientTokenId.",
    ],
)
def test_a_wrong_key_is_not_advised_to_allow_requests(message: str) -> None:
    simulation = _failed_resolve("AccessDenied", message)
    assert "AWS_SECRET_ACCESS_KEY in the Secret of spec.credentials.secretRef" in _message(simulation, "Resolved")
    assert "s3:GetObject" not in _message(simulation, "Resolved")


def test_a_bucket_in_another_region_is_advised_to_set_the_region() -> None:
    sentence = remedy("AccessDenied", "its bucket is in the region eu-central-1; set that region (301).")
    assert "spec.source.s3.region" in sentence


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [
        ('pods "x" is forbidden: violates PodSecurity "baseline:latest": hostPath volumes', "spec.cache.delivery"),
        (
            'pods "x" is forbidden: failed quota: q: must specify limits.cpu for: tonnage-loader',
            "spec.loader.resources",
        ),
        ('pods "x" is forbidden: error looking up service account serving/reader', "reader"),
        ("", "kubectl describe job"),
    ],
)
def test_a_job_without_a_pod_quotes_the_api_server(refusal: str, advice: str) -> None:
    simulation = Simulation()
    simulation.converge()
    (body,) = simulation.active_jobs(names.ROLE_RESOLVE)
    body["status"] = {"startTime": "2026-01-01T00:00:00Z"}
    job = parse_job(body)
    simulation.advance(20)
    snapshot = replace(simulation.snapshot(), refusals={job.uid: refusal})
    failure = snapshot.start_failure(job)
    assert failure
    assert failure.reason == "PodNotCreated"
    assert refusal in failure.message
    assert advice in failure.message


def test_counts_are_grammatical() -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve()
    assert "1 node is loading" in _message(simulation, "Progressing")
    simulation.finish_loads()
    assert _message(simulation, "Warm") == "The desired node is warm."


def test_the_column_warm_counts_nodes_that_pods_have_warmed() -> None:
    simulation = _lazy()
    assert simulation.status["nodes"]["summary"] == "0"
    simulation.consumers = [consumer_pod(simulation, "n0")]
    simulation.converge()
    assert simulation.status["nodes"]["summary"] == "1"


def test_an_unused_medium_shows_0_and_an_unknown_free_space_nothing() -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve()
    simulation.finish_loads()
    summary = simulation.caches["n0"].summary
    assert summary
    assert (summary.memory_used, summary.disk_used, summary.memory_free) == ("2Gi", "0", "")
    full = NodeSnapshot(
        now=simulation.now,
        installation=objects.INSTALLATION,
        node=simulation.nodes["n0"],
        uid="u",
        status=simulation.caches["n0"],
        reported_media={Medium.MEMORY: contract.Medium(filesystem="tmpfs", capacity_bytes=1 << 40, free_bytes=0)},
    )
    status = decide_node(full).status
    assert status
    assert status.summary
    assert status.summary.memory_free == "0"


@pytest.mark.parametrize(
    ("reported", "shown"), [("crc32", "CRC32"), ("sha256", "SHA256"), ("size", "Size"), ("none", "None")]
)
def test_a_record_has_the_level_of_verification_as_the_spec_has_it(reported: str, shown: str) -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve()
    (job,) = simulation.active_jobs(names.ROLE_LOAD)
    simulation.finish_job(job, contract.Report(outcome=contract.Outcome.LOADED, bytes=1, verified=reported))
    simulation.converge()
    (entry,) = simulation.caches["n0"].entries or ()
    assert entry.verified == shown


def test_object_and_node_state_by_what_a_load_verified_objects_and_never_that_best_was_reached() -> None:
    simulation = prewarming_simulation(1, {"verify": "Best"})
    simulation.finish_resolve()
    (job,) = simulation.active_jobs(names.ROLE_LOAD)
    means = "CRC64NVME: 30 objects, size only: 1 object"
    note = "NoChecksum: m/config.json: verified by size and revision only."
    report = contract.Report(
        outcome=contract.Outcome.LOADED,
        bytes=1,
        revision=simulation.status["resolved"]["revision"],
        verified="size",
        verified_by=means,
        notes=(note,),
    )
    simulation.finish_job(job, report)
    simulation.converge()
    (entry,) = simulation.caches["n0"].entries or ()
    assert (entry.verified, entry.verified_by) == ("Size", means)
    assert simulation.status["verifiedBy"] == means
    assert note in simulation.status["notes"]


def test_a_pod_that_started_proves_no_level_where_best_was_asked_for() -> None:
    simulation = prewarming_simulation(1, {"verify": "Best", "placement": {}})
    simulation.finish_resolve()
    pod = consumer_pod(simulation, "n0")
    simulation.consumers = [replace(pod, held_entries=(structs.replace(pod.held_entries[0], verify="Best"),))]
    simulation.converge()
    (entry,) = simulation.caches["n0"].entries or ()
    assert (entry.state.value, entry.verified) == ("Ready", None)


def test_a_resolve_job_tolerates_what_load_jobs_tolerate_and_runs_on_linux() -> None:
    weights = objects.modelweights({"placement": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}})
    settings = {
        "labels": {"kueue.x-k8s.io/queue-name": "q", "app.kubernetes.io/managed-by": "mine"},
        "annotations": {"a": "b"},
        "tolerations": [{"operator": "Exists"}],
        "nodeSelector": {"pool": "cpu"},
    }
    changes = {"jobs": settings, "loader": {"image": "i", "env": [{"name": "HTTPS_PROXY", "value": "http://p"}]}}
    installation = objects.INSTALLATION.model_validate(
        objects.deep_merge(objects.INSTALLATION.model_dump(mode="json", by_alias=True), changes)
    )
    job = build_resolve_job(weights, installation, round_="", attempt=1)
    pod = job["spec"]["template"]["spec"]
    assert [each.get("key") for each in pod["tolerations"]] == ["gpu", None]
    assert pod["nodeSelector"] == {"pool": "cpu"}
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": "kubernetes.io/os", "operator": "NotIn", "values": ["windows"]}]
    assert {"name": "HTTPS_PROXY", "value": "http://p"} in pod["containers"][0]["env"]
    for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
        assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "q"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "tonnage-operator", "ours can't be replaced"
        assert metadata["annotations"]["a"] == "b"


def test_windows_nodes_are_not_desired() -> None:
    simulation = prewarming_simulation(1)
    simulation.add_nodes("win", labels={"kubernetes.io/os": "windows"})
    simulation.add_nodes("lin", labels={"kubernetes.io/os": "linux"})
    simulation.finish_resolve()
    assert simulation.loading_nodes() == {"n0", "lin"}


VLLM_NOTE = "s3://b/model.tensors was serialized by vLLM. To serve: `vllm serve MODEL --load-format sharded_state`."


def _finish_load(simulation: Simulation, *notes: str) -> None:
    revision = simulation.status["resolved"]["revision"]
    for job in simulation.active_jobs(names.ROLE_LOAD):
        report = contract.Report(outcome=contract.Outcome.LOADED, revision=revision, notes=notes)
        simulation.finish_job(job, report)
    simulation.converge()


def test_notes_of_loads_reach_the_object_and_stay_while_its_revision_does() -> None:
    simulation = prewarming_simulation(2, {"revision": {"policy": "Track", "update": "Automatic", "interval": "10m"}})
    simulation.finish_resolve()
    assert "notes" not in simulation.status
    _finish_load(simulation, VLLM_NOTE)
    assert simulation.status["notes"] == [VLLM_NOTE]
    simulation.jobs.clear()
    simulation.pods.clear()
    simulation.converge()
    assert simulation.status["notes"] == [VLLM_NOTE]
    simulation.advance(601)
    simulation.finish_resolve("2")
    _finish_load(simulation)
    assert "notes" not in simulation.status


LEFT_OUT = "Left out, because no pattern matches: modeling_x.py. To load them, use --include (spec.files.companions)."


def test_files_left_out_are_in_the_condition_also_after_loads_that_do_not_see_them() -> None:
    simulation = prewarming_simulation(2)
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    notes = (LEFT_OUT, OMITTED_OBJECTS_NOTE)
    simulation.reports[job["metadata"]["uid"]] = structs.replace(objects.resolved_report(), notes=notes)
    simulation.finish_job(job)
    simulation.converge()
    assert LEFT_OUT in _message(simulation, "Resolved")
    _finish_load(simulation, VLLM_NOTE)
    simulation.jobs.clear()
    simulation.pods.clear()
    simulation.converge()
    assert simulation.status["notes"] == [LEFT_OUT, VLLM_NOTE]
    assert _message(simulation, "Resolved").endswith(f" {LEFT_OUT} And 1 more in status.notes.")


def test_notes_of_a_pods_loader_reach_the_object_but_not_from_another_namespace() -> None:
    simulation = _lazy()
    for changes in ({"namespace": "other"}, {"revision": "r-000000000000"}):
        simulation.consumers = [ended_pod(simulation, "n0", VLLM_NOTE, **changes)]
        simulation.converge()
        assert "notes" not in simulation.status
    simulation.consumers = [ended_pod(simulation, "n0", VLLM_NOTE), ended_pod(simulation, "n1", VLLM_NOTE)]
    simulation.converge()
    assert simulation.status["notes"] == [VLLM_NOTE]


def test_notes_are_few_short_and_printable() -> None:
    simulation = _lazy()
    simulation.consumers = [ended_pod(simulation, "n0", f"{number}\x1b[2J" + "long " * 40) for number in range(20)] + [
        ended_pod(simulation, "n1", "z" * 3000)
    ]
    simulation.converge()
    notes = simulation.status["notes"]
    assert len(notes) == 8
    assert all(len(note) <= 600 and note.isprintable() for note in notes)
