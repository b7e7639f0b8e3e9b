"""Objects that others can write: whatever is in them, the controller keeps running and sees the others."""

from __future__ import annotations

import copy
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operator_support import objects
from tonnage import contract
from tonnage.errors import InvalidPlan
from tonnage_operator.api import names
from tonnage_operator.controller import metrics_recorder
from tonnage_operator.controller.state import ControllerState
from tonnage_operator.domain.modelweights.revisions import parse_resolve_report
from tonnage_operator.domain.observed import held_entries
from tonnage_operator.domain.observed.held_entries import HeldEntry, format_held_entries, parse_held_entries
from tonnage_operator.domain.observed.job_results import Failure
from tonnage_operator.kube.resources import JOBS, MODEL_WEIGHTS, NODE_CACHES, NODES, PODS
from tonnage_operator.kube.store import Store
from tonnage_operator.webhook.admission_handler import InvalidReview, parse_review

if TYPE_CHECKING:
    from collections.abc import Callable

Body = dict[str, Any]

DEEP = "[" * 20_000
ANNOTATIONS = (
    names.ATTEMPT, names.BYTES, names.MEDIUM, names.NODE, names.CACHE_KEY, names.SOURCE_HASH, names.CAUSE,
    names.BOOT_ID, names.ROUND, names.MODEL_REF, names.ENTRIES, names.SIGNATURE, names.ADMISSION,
)  # fmt: skip
LABELS = (names.ROLE, names.MODEL_UID)
ODD = (DEEP, "-1", "9" * 30, "1e9", "\u0661", "[[]]", "{}", "null", "\ud800")
TEXTS = st.text(max_size=40) | st.sampled_from(ODD)


def _body(kind: str, **metadata: Any) -> Body:
    return {
        "kind": kind,
        "metadata": {"uid": "u", "name": "n", "namespace": "evil", "resourceVersion": "1", **metadata},
    }


@given(
    annotations=st.dictionaries(st.sampled_from(ANNOTATIONS), TEXTS),
    labels=st.dictionaries(st.sampled_from(LABELS), TEXTS),
    message=TEXTS,
)
def test_no_text_in_a_job_a_pod_or_a_node_raises(
    annotations: dict[str, str], labels: dict[str, str], message: str
) -> None:
    state = ControllerState(objects.INSTALLATION)
    ended = {"name": "tonnage-loader", "state": {"terminated": {"exitCode": 1, "message": message}}}
    for resource in (JOBS, PODS, NODES):
        body = _body(resource.kind, annotations=annotations, labels=labels)
        body["status"] = {"initContainerStatuses": [ended]} if resource is PODS else {}
        state.store_for(resource).put(body)


@given(spec=st.recursive(st.none() | st.text(), lambda each: st.lists(each) | st.dictionaries(st.text(), each)))
def test_no_content_of_a_custom_resource_raises(spec: Any) -> None:
    state = ControllerState(objects.INSTALLATION)
    for resource in (MODEL_WEIGHTS, NODE_CACHES):
        for part in ("spec", "status"):
            state.store_for(resource).put({**_body(resource.kind), part: spec})


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (names.ATTEMPT, "abc"),
        (names.ATTEMPT, "0"),
        (names.ATTEMPT, "9" * 5000),
        (names.BYTES, "-1"),
        (names.MEDIUM, "Bogus"),
    ],
)
def test_a_job_with_an_invalid_annotation_is_ignored_and_logged_once(
    annotation: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = ControllerState(objects.INSTALLATION).jobs
    bad = _body("Job", annotations={annotation: value})
    with caplog.at_level(logging.WARNING, "tonnage.watch"):
        jobs.put(bad)
        jobs.replace([copy.deepcopy(bad), _body("Job", uid="good", name="good")], "1")
        jobs.put({**bad, "metadata": {**bad["metadata"], "resourceVersion": "2"}})
    assert [job.uid for job in jobs] == ["good"]
    assert jobs.unreadable == 1
    (record,) = caplog.records
    assert "evil/n" in record.getMessage()
    assert len(record.getMessage()) < 300


def test_an_object_that_becomes_valid_is_seen_and_one_that_is_deleted_is_not_counted() -> None:
    jobs = ControllerState(objects.INSTALLATION).jobs
    jobs.put(_body("Job", annotations={names.ATTEMPT: "x"}))
    jobs.put(_body("Job", resourceVersion="2"))
    assert (len(list(jobs)), jobs.unreadable) == (1, 0)
    jobs.put(_body("Job", resourceVersion="3", annotations={names.ATTEMPT: "x"}))
    assert (len(list(jobs)), jobs.unreadable) == (0, 1)
    jobs.remove("u", 4)
    assert jobs.unreadable == 0


def test_an_object_that_becomes_invalid_is_removed_for_the_event_handlers() -> None:
    changes: list[tuple[str | None, str | None]] = []
    store: Store[str] = Store(lambda body: str(int(body["value"])))
    store.add_event_handler(lambda before, after: changes.append((before, after)))
    store.put({**_body("X"), "value": "1"})
    store.put({**_body("X", resourceVersion="2"), "value": "x"})
    assert changes == [(None, "1"), ("1", None)]


@pytest.mark.parametrize(
    "text", [DEEP, f'[{{"zz": {DEEP}}}]', "[" + ",".join(["{}"] * 50) + "]", "x" * 300_000, "\ud800"]
)
def test_a_foreign_annotation_holds_no_entries(text: str) -> None:
    assert parse_held_entries(text) == ()


def _held(**fields: Any) -> HeldEntry:
    return HeldEntry(**{"container": "c", "namespace": "n", "name": "m", "uid": "u", "revision": "r-1", **fields})


@pytest.mark.parametrize("fields", [{"bytes": -1}, {"bytes": 2**63}, {"key": "k" * 2000}])
def test_held_entries_out_of_bounds_are_rejected(fields: Body) -> None:
    assert parse_held_entries(format_held_entries((_held(**fields),))) == ()


def test_as_many_held_entries_as_a_pod_can_have_models_are_read() -> None:
    full = tuple(_held(name=f"m{index}", bytes=2**63 - 1) for index in range(held_entries.MAX_HELD_ENTRIES))
    assert parse_held_entries(format_held_entries(full)) == full
    artifacts = tuple(_held() for _ in range(held_entries.MAX_HELD_ARTIFACTS))
    assert parse_held_entries(format_held_entries((*full, *artifacts))) == (*full, *artifacts)
    assert parse_held_entries(format_held_entries((*full, *artifacts, _held()))) == ()


@pytest.mark.parametrize("decode", [contract.decode_report, contract.decode_plan])
@pytest.mark.parametrize(
    "data", [DEEP.encode(), b'{"schema_version": 1, "notes": ' + DEEP.encode(), b"\xff\xfe", b"\xed\xa0\x80"]
)
def test_deep_or_undecodable_text_is_an_invalid_document(decode: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(InvalidPlan):
        decode(data)


@pytest.mark.parametrize("data", [DEEP.encode(), b'{"request": ' + DEEP.encode(), b"\xff"])
def test_deep_or_undecodable_text_is_an_invalid_review(data: bytes) -> None:
    with pytest.raises(InvalidReview):
        parse_review(data)


BEHAVIORS_OF_NO_STORE: list[object] = [
    {"addressing_style": "diagonal"},
    {"addressing_style": 1},
    {"region": "eu-west-3\n"},
    {"region": "host/"},
    {"region": "a" * 65},
    {"etag_only": "yes"},
    [],
]


@pytest.mark.parametrize(
    "fields",
    [
        {"bytes": 10**30},
        {"bytes": -1},
        {"seconds": 1e300},
        {"reason": "x y"},
        {"reason": "x" * 5000},
        {"verified": "\n"},
        {"entry": "x" * 5000},
        {"medium": {"filesystem": "tmpfs", "capacity_bytes": 10**30}},
        {"medium": {"filesystem": "tmpfs", "free_bytes": -1}},
        {"progress": {"phase": "loading", "loaded_bytes": 2**63}},
        {"resolved": [{"place": "models", "objects": [{"key": "k" * 5000, "size": 1}]}]},
        {"resolved": [{"place": "models", "objects": [{"key": "k", "size": 2**63}]}]},
        *({"resolved": [{"place": "models", "objects": [], "behavior": each}]} for each in BEHAVIORS_OF_NO_STORE),
    ],
    ids=str,
)
def test_a_report_that_no_status_could_hold_is_invalid(fields: Body) -> None:
    text = json.dumps({"schema_version": 1, **fields})
    with pytest.raises(InvalidPlan):
        contract.decode_report(text)


def test_a_list_of_objects_with_more_bytes_than_a_number_holds_is_refused() -> None:
    pins = tuple(contract.ObjectPin(key=f"llama/{index}.tensors", size=2**63 - 1, etag="e") for index in range(2))
    honest = objects.resolved_report()
    assert honest.resolved
    place = honest.resolved[0].place
    report = contract.Report(
        kind=contract.ReportKind.RESOLVED,
        digest=contract.revision_digest((place, pin) for pin in pins),
        resolved=(contract.ResolvedSource(place=place, objects=pins),),
    )
    found = parse_resolve_report(report, objects.modelweights(), now="2026-01-01T00:00:00Z")
    assert isinstance(found, Failure)
    assert "impossible" in found.message


def test_reasons_that_no_loader_has_make_no_metric_series() -> None:
    assert metrics_recorder._known_reason("AccessDenied") == "AccessDenied"
    assert {metrics_recorder._known_reason(f"Invented{index}") for index in range(100)} == {"Other"}
