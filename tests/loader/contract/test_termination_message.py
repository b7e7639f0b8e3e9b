"""The termination message: never longer than Kubernetes keeps, always JSON, and always with the result."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tonnage.contract import (
    Identity,
    Medium,
    ObjectPin,
    Outcome,
    Progress,
    Report,
    ReportKind,
    ResolvedSource,
    Verify,
    decode_report,
    termination_message,
)
from tonnage.contract.report import OMITTED_OBJECTS_NOTE, TERMINATION_MESSAGE_LIMIT
from tonnage.errors import Reason

texts = st.text(max_size=30) | st.text(min_size=1, max_size=10).map(lambda text: text * 900)
long_names = st.text(max_size=30) | st.text(min_size=1, max_size=10).map(lambda text: text * 100)
numbers = st.integers(0, 1 << 62)
pins = st.builds(ObjectPin, key=long_names, size=numbers, etag=long_names)
sources = st.builds(ResolvedSource, place=long_names, objects=st.tuples(pins))
reports = st.builds(
    Report,
    kind=st.sampled_from(ReportKind),
    outcome=st.sampled_from(Outcome),
    reason=st.sampled_from(["", *Reason]),
    message=texts,
    remedy=texts,
    revision=long_names,
    digest=long_names,
    entry=long_names,
    path=long_names,
    bytes=numbers,
    seconds=st.floats(0, 1e8),
    verified=st.sampled_from(["", *Verify]),
    notes=st.lists(texts, max_size=20).map(tuple),
    medium=st.none() | st.builds(Medium, filesystem=long_names, pages=long_names, capacity_bytes=numbers),
    progress=st.none() | st.builds(Progress, phase=long_names, waiting_for=texts),
    resolved=st.none() | st.lists(sources, max_size=50).map(tuple),
    entries=st.none() | st.lists(texts, max_size=20).map(tuple),
    identity=st.none() | st.builds(Identity, namespace=texts, name=texts, uid=texts, generation=numbers),
    node=long_names,
    pod=long_names,
)  # fmt: skip


@given(reports)
@settings(max_examples=100)
def test_any_report_fits_and_keeps_kind_outcome_and_reason(report: Report) -> None:
    data = termination_message(report)
    assert len(data) <= TERMINATION_MESSAGE_LIMIT
    kept = decode_report(data)
    assert (kept.kind, kept.outcome, kept.reason) == (report.kind, report.outcome, report.reason)


@given(reports)
def test_a_report_that_fits_is_unchanged(report: Report) -> None:
    if len(msgspec.json.encode(report)) <= TERMINATION_MESSAGE_LIMIT:
        assert decode_report(termination_message(report)) == report


def test_default_values_are_omitted() -> None:
    """In a pod with many containers, Kubernetes keeps only a share of each message."""
    report = Report(outcome=Outcome.LOADED, revision="r-0123456789ab", bytes=7)
    assert json.loads(termination_message(report)) == {
        "schema_version": 1, "kind": "finished", "outcome": "loaded", "revision": "r-0123456789ab", "bytes": 7,
    }  # fmt: skip


def test_a_list_that_is_too_long_is_marked_as_truncated() -> None:
    objects = tuple(
        ObjectPin(key=f"model/shard-{number:05}.tensors", size=1 << 30, etag="e" * 32) for number in range(100)
    )
    report = Report(
        kind=ReportKind.RESOLVED, digest="sha256:" + "0" * 64, revision="r-0123456789ab",
        resolved=(ResolvedSource(place="models", objects=objects),), notes=("Files were left out: x.bin.",),
    )  # fmt: skip
    kept = decode_report(termination_message(report))
    assert kept.resolved is None
    assert kept.notes == ("Files were left out: x.bin.", OMITTED_OBJECTS_NOTE)
    assert (kept.digest, kept.revision) == (report.digest, report.revision)
