"""``kubectl tonnage why``: a sentence and a next step for every reason that there is, from whatever objects contain."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operator_support.objects import modelweights_manifest
from support.repository import ROOT
from tonnage.contract import Outcome, Report, encode_report
from tonnage.errors import Reason
from tonnage_operator.api import names
from tonnage_operator.domain.reasons import ConditionReason, FailureReason
from tonnage_operator.kubectl.explanation import FINE, Explanation, next_step
from tonnage_operator.kubectl.model_state import explain_model, explain_node
from tonnage_operator.kubectl.pod_state import PodContext, explain_missing_pod, explain_pod, requested_models
from tonnage_operator.kubectl.tables import history_table, model_details, model_table, node_details, node_table
from tonnage_operator.kubectl.text import bar, clean, utc_now

Body = dict[str, Any]
PAGE = (ROOT / "docs" / "guides" / "operations" / "reasons.md").read_text()
STATE = re.compile(r"^\| `(\w+)` \| (?:NodeCache )?([\w, ]+): (True|False)", re.MULTILINE)
STATES = [
    (reason, condition.strip(), status)
    for reason, conditions, status in STATE.findall(PAGE)
    for condition in conditions.split(",")
]
OF_NODES = {"CapacityPressure", "RecordTruncated"}
NODE_REASONS = {"NodeReady", "NodeNotReady"}
ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202e\r\n"


def condition(kind: str, status: str, reason: str, message: str = "What happened.") -> Body:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def model(*conditions: Body, **status: Any) -> Body:
    return modelweights_manifest(status={"observedGeneration": 1, "conditions": list(conditions), **status})


def loader_status(state: Body, **more: Any) -> Body:
    return {"name": names.LOADER_CONTAINER, "ready": False, "restartCount": 0, "state": state, **more}


def pod(*loaders: Body, annotations: Body | None = None, **status: Any) -> Body:
    """A pod that the webhook has admitted, on node n1."""
    marks = {names.MODEL: "llama", names.INJECTED: "1", names.REVISION: "default=r-1"}
    return {
        "metadata": {
            "name": "vllm-0", "namespace": "serving", "uid": "u",
            "annotations": marks if annotations is None else annotations,
        },
        "spec": {"nodeName": "n1", "initContainers": [{"name": names.LOADER_CONTAINER}], "containers": [{"name": "c"}]},
        "status": {"phase": "Pending", "initContainerStatuses": list(loaders), **status},
    }  # fmt: skip


def terminated(report: Report | None = None, *, code: int = 0, reason: str = "Error") -> Body:
    message = encode_report(report).decode() if report is not None else ""
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


def explain(body: Body, *models: Body, **more: Any) -> Explanation:
    found = {f"{each['metadata']['namespace']}/{each['metadata']['name']}": each for each in models}
    return explain_pod(PodContext(body, models=found, **more))


def test_the_page_of_reasons_was_read() -> None:
    listed = {reason for reason, _, _ in STATES}
    assert listed >= {str(each) for each in ConditionReason} - {"Suspended"}


@pytest.mark.parametrize(("reason", "kind", "status"), STATES)
def test_every_state_of_the_page_has_a_sentence_and_a_next_step_or_is_fine(reason: str, kind: str, status: str) -> None:
    body = model(condition(kind, status, reason))
    of_node = kind in OF_NODES or reason in NODE_REASONS
    found = explain_node(body) if of_node else explain_model(body)
    assert found.reason == reason
    assert "What happened." in found.sentence
    assert found.is_fine == (reason in FINE)
    assert bool(found.next_step) != found.is_fine


@pytest.mark.parametrize("reason", [*FailureReason, *Reason])
def test_every_failure_has_a_next_step(reason: str) -> None:
    found = explain_model(model(condition("Resolved", "False", str(reason)), condition("Accepted", "True", "Accepted")))
    assert (found.reason, found.is_fine) == (str(reason), False)
    assert found.next_step == next_step(str(reason), "What happened.")
    assert found.next_step.endswith((".", "?"))


@pytest.mark.parametrize("reason", sorted(set(Reason) - {Reason.LOADER_EVICTED, Reason.LOADER_OOM_KILLED}))
def test_a_loader_that_failed_in_the_pod_is_explained_by_its_own_report(reason: Reason) -> None:
    report = Report(outcome=Outcome.FAILED, reason=reason, message="s3://b/x: it failed.", remedy="Do it.")
    state = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    found = explain(pod(loader_status(state, lastState=terminated(report, code=10), restartCount=2)))
    assert found.reason == reason
    assert "s3://b/x: it failed." in found.sentence
    assert "3 times" in found.sentence
    assert found.next_step


@pytest.mark.parametrize(
    ("body", "reason", "words"),
    [
        (pod(annotations={}), "NotRequested", "requests no weights"),
        (pod(annotations={names.MODEL: "m", names.INJECT: "false"}), "InjectionOff", "is false"),
        (pod(annotations={names.MODEL: "m"}), "NotInjected", "without the webhook"),
        (pod(loader_status({"running": {}}, started=False)), "Loading", "waits for its loader on n1"),
        (pod(loader_status({"waiting": {"reason": "ContainerCreating"}})), "ContainerCreating", "has not started"),
        (pod(), "ContainerCreating", "has not started the loader"),
        (
            pod(loader_status({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})),
            "ContainerNotStarted", "no such image",
        ),
        (
            pod(loader_status({"waiting": {"reason": "CreateContainerError", "message": 'secret "k" not found'}})),
            "CredentialsMissing", 'secret "k" not found',
        ),
        (pod(loader_status(terminated(code=137, reason="OOMKilled"))), "LoaderOOMKilled", "OOM-killed"),
        (pod(loader_status(terminated(code=137))), "LoaderKilled", "SIGKILL"),
        (
            pod(loader_status(terminated(code=1)), phase="Failed", reason="Evicted", message="low on memory"),
            "LoaderEvicted", "low on memory",
        ),
    ],
)  # fmt: skip
def test_a_pod_that_waits_or_has_failed_is_explained(body: Body, reason: str, words: str) -> None:
    found = explain(body)
    assert found.reason == reason
    assert words in found.sentence
    assert found.next_step


def test_what_keeps_a_container_from_being_created_is_read_from_events() -> None:
    events = [
        {"type": "Warning", "reason": "FailedMount", "message": 'configmap "ca" not found', "lastTimestamp": "2"},
        {"type": "Normal", "reason": "Scheduled", "message": "ok", "lastTimestamp": "3"},
        {"type": "Warning", "reason": "Other", "message": "older", "lastTimestamp": "1"},
    ]
    found = explain(pod(loader_status({"waiting": {"reason": "ContainerCreating"}})), events=events)
    assert found.reason == "ContainerNotStarted"
    assert 'FailedMount: configmap "ca" not found' in found.sentence


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (model(condition("Ready", "False", "NoWarmNode", "no pod can start.")), "no pod can start"),
        (model(condition("Ready", "False", "WaitingForSpace", "1 node has no room.")), "no room"),
        (model(), "has not seen"),
    ],
)
def test_a_pod_without_a_node_is_explained_with_the_state_of_its_model(weights: Body, words: str) -> None:
    message = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity."
    unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    found = explain(pod(conditions=[unplaced]), weights)
    assert found.reason == "LoaderUnschedulable"
    assert message in found.sentence
    assert words in found.sentence
    assert found.next_step


def test_a_pod_that_waits_for_a_warm_node_repeats_the_event_of_the_controller() -> None:
    unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes."}
    event = {
        "type": "Normal",
        "reason": "WaitingForWarmNode",
        "message": "1 node is being warmed.",
        "lastTimestamp": "1",
    }
    assert "1 node is being warmed." in explain(pod(conditions=[unplaced]), events=[event]).sentence


def test_a_gated_pod_names_its_gate() -> None:
    body = pod()
    body["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
    assert "kueue.x-k8s.io/admission" in explain(body).sentence


def ready(report: Report) -> Body:
    container = {"name": "c", "ready": True, "state": {"running": {}}}
    return pod(loader_status(terminated(report, reason="Completed")), phase="Running", containerStatuses=[container])


def test_a_warm_start_differs_from_a_cold_one_and_its_cause_is_named() -> None:
    hit = explain(ready(Report(outcome=Outcome.HIT, seconds=0.3)))
    assert (hit.is_fine, "in the cache of n1" in hit.sentence) == (True, True)
    loaded = Report(outcome=Outcome.LOADED, downloaded_bytes=10**10, seconds=5.0)
    cold = explain(ready(loaded), model(condition("Ready", "True", "LoadedOnDemand")))
    assert "downloaded: 9.3Gi in 5.0 s at 2.00 GB/s" in cold.sentence
    assert "prewarm: None" in cold.sentence


def test_a_pod_of_an_older_revision_names_the_one_in_use() -> None:
    weights = model(condition("Ready", "True", "Warm"), resolved={"revision": "r-2"})
    assert "r-2" in explain(ready(Report(outcome=Outcome.HIT)), weights).sentence


def test_a_pod_that_runs_without_weights_gives_the_reason() -> None:
    failed = Report(outcome=Outcome.FAILED, reason=Reason.TIMEOUT, message="It took too long.")
    found = explain(ready(failed))
    assert (found.reason, found.is_fine) == ("Timeout", False)
    assert "runs without weights" in found.sentence


def test_a_pod_whose_engine_is_not_ready_has_its_weights() -> None:
    body = ready(Report(outcome=Outcome.HIT, seconds=0.1))
    body["status"]["containerStatuses"] = [{"name": "c", "ready": False, "state": {"running": {}}}]
    found = explain(body)
    assert (found.reason, "container c is not ready" in found.sentence) == ("WeightsReady", True)


def test_pods_that_are_never_created_are_explained_by_events_of_their_owner() -> None:
    message = (
        'admission webhook "pods.tonnage.dev" denied the request: ModelWeights s/m is not resolved: AccessDenied: no.'
    )
    event = {"reason": "FailedCreate", "message": message, "involvedObject": {"kind": "ReplicaSet", "name": "vllm-7d9"}}
    found = explain_missing_pod("vllm-7d9-abcde", "serving", [event])
    assert found is not None
    assert "ReplicaSet serving/vllm-7d9 are not created" in found.sentence
    assert "s3:GetObject" in found.next_step
    assert explain_missing_pod("other", "serving", [event]) is None


def test_the_requested_models_are_read_as_the_webhook_reads_them() -> None:
    body = pod(annotations={names.MODELS: "draft=tiny, main=shared/llama"})
    assert requested_models(body) == ["serving/tiny", "shared/llama"]
    assert len(requested_models(pod(annotations={names.MODELS: ",".join(f"m{n}" for n in range(1000))}))) == 16


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
FIELDS = ("metadata", "spec", "status", "conditions", "failures", "progress", "nodes", "media", "entries", "history")
OBJECTS = st.dictionaries(st.sampled_from(FIELDS), JSON | st.dictionaries(st.sampled_from(FIELDS), JSON), max_size=6)


@given(OBJECTS)
def test_objects_of_any_form_are_shown_without_an_error(body: Body) -> None:
    now = utc_now()
    explain_model(body), explain_node(body)
    for lines in (
        model_table([body], now, namespaces=True, bars=True), model_details(body, now, bars=True),
        node_table([body], bars=True), node_details(body, now, bars=False), history_table(body, now),
    ):  # fmt: skip
        assert all("\n" not in line for line in lines)


@given(st.text(max_size=3000), st.integers(1, 400))
def test_foreign_text_is_one_bounded_line_that_controls_no_terminal(text: str, limit: int) -> None:
    found = clean(text, limit)
    assert len(found) <= limit
    assert found.isprintable()


def test_escape_sequences_in_names_messages_and_reports_are_harmless() -> None:
    weights = model(
        condition("Ready", "False", f"Bad{ESCAPES}", ESCAPES * 1000), source=ESCAPES, size=ESCAPES,
        failures=[{"node": ESCAPES, "reason": ESCAPES, "message": ESCAPES, "time": ESCAPES}],
        progress={"node": ESCAPES, "percent": 3, "eta": ESCAPES}, resolved={"revision": ESCAPES},
    )  # fmt: skip
    report = Report(outcome=Outcome.FAILED, reason=ESCAPES, message=ESCAPES, remedy=ESCAPES)
    found = explain(pod(loader_status(terminated(report, code=10))), weights)
    printed = [found.sentence, found.reason, *model_details(weights, utc_now(), bars=False)]
    printed += model_table([weights], utc_now(), namespaces=True, bars=False)
    assert all(each.isprintable() for each in printed)
    assert max(map(len, printed)) < 2000


def test_a_bar_shows_its_share() -> None:
    assert bar(0.5, width=4) == "━━──  50%"
    assert bar(7, width=2) == "━━ 100%"
    assert json.loads(json.dumps(bar(-1, width=2))) == "──   0%"
