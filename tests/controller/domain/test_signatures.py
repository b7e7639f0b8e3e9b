"""What counts only with the operator's signature: Jobs, their pods, and the entries that pods hold."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operator_support import objects
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.status import SeenRevision
from tonnage_operator.config import ConfigError, read_signing_keys
from tonnage_operator.controller.state import ControllerState
from tonnage_operator.domain import signing
from tonnage_operator.domain.modelweights.revisions import parse_resolve_report
from tonnage_operator.domain.observed import held_entries
from tonnage_operator.domain.observed.held_entries import HeldEntry, format_held_entries, sign_held_entries
from tonnage_operator.domain.observed.job import parse_job
from tonnage_operator.domain.observed.node import parse_node
from tonnage_operator.domain.observed.pod import parse_pod
from tonnage_operator.domain.signing import SigningKeys
from tonnage_operator.domain.specs import jobs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Body = dict[str, Any]
KEYS = objects.KEYS
OTHER = SigningKeys((b"the key of another installation, or a newer one",))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
CREATED = signing.format_time(NOW)
PARTS = st.lists(st.text(max_size=5), max_size=4).map(tuple)


@given(parts=PARTS, others=PARTS)
def test_a_signature_is_that_of_exactly_its_parts(parts: tuple[str, ...], others: tuple[str, ...]) -> None:
    signature = KEYS.sign(*parts)
    assert KEYS.verifies(signature, *parts)
    assert KEYS.verifies(signature, *others) is (parts == others)
    assert not OTHER.verifies(signature, *parts)


@given(signature=st.text())
def test_no_text_is_a_signature_by_chance(signature: str) -> None:
    assert not KEYS.verifies(signature, "part")
    assert not signing.NO_KEYS.verifies(signature, "part")


def test_during_a_rotation_the_previous_key_still_verifies_and_the_current_one_signs() -> None:
    rotated = SigningKeys((*OTHER.keys, *KEYS.keys))
    assert rotated.verifies(KEYS.sign("part"), "part")
    assert rotated.sign("part") == OTHER.sign("part")


def test_a_key_is_in_no_text_of_the_installation() -> None:
    secret = KEYS.keys[0].decode()
    assert secret not in repr(objects.INSTALLATION)
    assert secret not in objects.INSTALLATION.model_dump_json(by_alias=True)


def test_the_current_and_the_previous_key_are_read_from_their_files(tmp_path: Path) -> None:
    (tmp_path / "current").write_text("c" * 64 + "\n")
    assert read_signing_keys(tmp_path, ".").keys == (b"c" * 64,)
    (tmp_path / "previous").write_text("")
    assert read_signing_keys(tmp_path, ".").keys == (b"c" * 64,)
    (tmp_path / "previous").write_text("p" * 64)
    assert read_signing_keys(tmp_path, ".").keys == (b"c" * 64, b"p" * 64)


@pytest.mark.parametrize("content", [None, "", "short"])
def test_without_a_long_enough_key_no_process_starts(tmp_path: Path, content: str | None) -> None:
    with pytest.raises(ConfigError, match="signingFolder is not set"):
        read_signing_keys(tmp_path, "")
    if content is not None:
        (tmp_path / "current").write_text(content)
    with pytest.raises(ConfigError, match="missing, or shorter than 32 bytes") as raised:
        read_signing_keys(tmp_path, ".")
    assert "short." not in str(raised.value)


def _load_job() -> Body:
    weights = objects.modelweights()
    seen = parse_resolve_report(objects.resolved_report(), weights, now="2026-01-01T00:00:00Z")
    assert isinstance(seen, SeenRevision)
    node = parse_node(objects.node("n0"))
    job = jobs.build_load_job(weights, seen, objects.INSTALLATION, node=node, attempt=1)
    job["metadata"] |= {"uid": "job", "resourceVersion": "1"}
    return job


def _cleanup_job() -> Body:
    node = parse_node(objects.node("n0"))
    place: Body = {"key": "r-1", "medium": Medium.DISK, "node": node}
    job = jobs.build_cleanup_job(objects.INSTALLATION, **place, attempt=1, uid="u", model_ref="", cause="Pressure")
    job["metadata"] |= {"uid": "cleanup", "resourceVersion": "1"}
    return job


def _state() -> ControllerState:
    state = ControllerState(objects.INSTALLATION)
    state.weights.put(objects.modelweights_manifest(resourceVersion="1"))
    node = objects.node("n0")
    state.nodes.put({**node, "metadata": {**node["metadata"], "resourceVersion": "1"}})
    return state


def _counts(job: Body) -> bool:
    state = _state()
    state.jobs.put(job)
    return bool(state.jobs_on("n0"))


SIGNED_ANNOTATIONS = (
    names.CACHE_KEY, names.MEDIUM, names.NODE, names.BOOT_ID, names.ATTEMPT, names.BYTES, names.MODEL_REF,
)  # fmt: skip


def test_jobs_of_the_operator_count() -> None:
    assert _counts(_load_job())
    assert _counts(_cleanup_job())


def test_a_job_that_a_tenant_makes_in_its_own_namespace_for_its_own_object_decides_nothing() -> None:
    forged = _load_job()
    del forged["metadata"]["annotations"][names.SIGNATURE]
    assert not _counts(forged)
    copied = _load_job()
    copied["metadata"]["name"] = "another"
    assert not _counts(copied)


def _created(job: Body, created: str) -> Body:
    """Returns a Job as the operator creates it, in the API server since ``created``."""
    stamped = signing.stamp_job(job, KEYS, NOW)
    return {**stamped, "metadata": {**stamped["metadata"], "creationTimestamp": created}}


@pytest.mark.parametrize("make", [_load_job, _cleanup_job])
def test_a_job_that_is_created_again_later_from_a_copy_decides_nothing(make: Callable[[], Body]) -> None:
    assert _counts(_created(make(), CREATED))
    assert _counts(_created(make(), "2026-01-01T00:04:59Z"))
    assert not _counts(_created(make(), "2026-01-01T00:05:01Z"))
    for changed in ({}, {names.SIGNED_AT: "2026-01-01T00:30:00Z"}, {names.SIGNED_AT: "x"}):
        copied = _created(make(), "2026-01-01T00:30:00Z")
        del copied["metadata"]["annotations"][names.SIGNED_AT]
        copied["metadata"]["annotations"] |= changed
        assert not _counts(copied)


def test_a_job_that_is_created_again_at_once_from_a_copy_decides_nothing() -> None:
    state, job = _state(), _created(_load_job(), CREATED)
    state.record_created_job(job)
    assert [each.uid for each in state.jobs_on("n0")] == ["job"]
    state.jobs.remove("job")
    copied = {**job, "metadata": {**job["metadata"], "uid": "copy"}}
    state.jobs.put(copied)
    assert not state.jobs_on("n0")
    state.record_created_job(copied)
    assert [each.uid for each in state.jobs_on("n0")] == ["copy"]


def test_a_job_that_another_controller_creates_later_under_the_same_name_counts() -> None:
    state, job = _state(), _created(_load_job(), CREATED)
    state.record_created_job(job)
    state.jobs.remove("job")
    later = signing.stamp_job(_load_job(), KEYS, NOW + timedelta(seconds=1))
    later["metadata"] |= {"uid": "later", "creationTimestamp": CREATED}
    state.jobs.put(later)
    assert [each.uid for each in state.jobs_on("n0")] == ["later"]


def test_the_signature_with_a_time_is_in_the_pod_of_the_job_too() -> None:
    stamped = signing.stamp_job(_load_job(), KEYS, NOW)
    signature = stamped["metadata"]["annotations"][names.SIGNATURE]
    assert stamped["spec"]["template"]["metadata"]["annotations"][names.SIGNATURE] == signature
    assert signature != _load_job()["metadata"]["annotations"][names.SIGNATURE]


@given(text=st.text(), created=st.text())
def test_no_text_is_a_time_by_chance(text: str, created: str) -> None:
    signing.is_timely({"annotations": {names.SIGNED_AT: text}, "creationTimestamp": created})


def test_a_pod_that_is_created_later_with_the_annotations_of_another_holds_nothing() -> None:
    assert parse_pod(_stored(_admitted(), creationTimestamp="2026-01-01T00:04:59Z"), KEYS).held_entries == (HELD,)
    late = parse_pod(_stored(_admitted(), creationTimestamp="2026-01-01T00:05:01Z"), KEYS)
    assert (late.held_entries, late.forged) == ((), True)


@pytest.mark.parametrize("annotation", SIGNED_ANNOTATIONS)
def test_a_job_whose_annotation_was_changed_decides_nothing(annotation: str) -> None:
    job = _load_job()
    value = {names.ATTEMPT: "99", names.BYTES: "7", names.MEDIUM: "Disk", names.NODE: "n1"}.get(annotation, "r-other")
    job["metadata"]["annotations"][annotation] = value
    assert not parse_job(job, KEYS).signature


@pytest.mark.parametrize("key", ["../../etc", "/etc", "a/b/c", "", ".", "..", "r-1/..", "A", "r-1\n", "x" * 64])
def test_a_cleanup_job_is_made_for_entries_only(key: str) -> None:
    node = parse_node(objects.node("n0"))
    with pytest.raises(ValueError, match="not the name of an entry"):
        jobs.build_cleanup_job(
            objects.INSTALLATION, key=key, medium=Medium.DISK, node=node, attempt=1, uid="u", model_ref="", cause=""
        )


def _pod_of(job: Body, name: str, created: str, **metadata: Any) -> Body:
    owner = {"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"], "controller": True}
    template = copy.deepcopy(job["spec"]["template"]["metadata"])
    base = {"name": name, "namespace": "serving", "uid": name, "creationTimestamp": created, "resourceVersion": "1"}
    return {"metadata": {**base, **template, "ownerReferences": [owner], **metadata}, "spec": {}, "status": {}}


def test_the_report_of_a_job_is_that_of_the_pod_that_its_controller_made() -> None:
    state, job = _state(), _load_job()
    state.jobs.put(job)
    state.pods.put(_pod_of(job, "unsigned", "2026-01-01T00:00:00Z", annotations={}))
    adopted = [{"kind": "Job", "name": "x", "uid": "job"}]
    state.pods.put(_pod_of(job, "not-controlled", "2026-01-01T00:00:00Z", ownerReferences=adopted))
    state.pods.put(_pod_of(job, "real", "2026-01-01T00:00:01Z"))
    state.pods.put(_pod_of(job, "later", "2026-01-01T00:00:02Z"))
    record = state.weights.get(objects.UID)
    assert record
    assert record.weights
    snapshot = state.snapshot(record, record.weights, datetime.now(UTC))
    assert snapshot.pods["job"].name == "real"
    assert [pod.name for pod in state.pods if state.job_of(pod)] == ["real"]


HELD = HeldEntry(
    container=names.LOADER_CONTAINER, namespace="serving", name="llama", uid=objects.UID, revision="r-1", key="r-1"
)


def _admitted(*, namespace: str = "serving", held: tuple[HeldEntry, ...] = (HELD,), **metadata: Any) -> Body:
    """Returns the metadata of a pod with a generated name, as the webhook signs it."""
    asked = {"generateName": "server-", **metadata, "annotations": {names.ENTRIES: format_held_entries(held)}}
    asked["annotations"] |= sign_held_entries(asked, namespace=namespace, review_uid="review-1", keys=KEYS, now=NOW)
    return asked


def _stored(metadata: Body, **more: Any) -> Body:
    plain = {
        "name": "server-abcde",
        "namespace": "serving",
        "uid": "u1",
        "resourceVersion": "1",
        "creationTimestamp": CREATED,
    }
    labels = {names.ROLE: names.ROLE_INJECTED}
    return {"metadata": {**plain, "labels": labels, **metadata, **more}, "spec": {"nodeName": "n0"}, "status": {}}


def test_an_admitted_pod_holds_its_entries() -> None:
    pod = parse_pod(_stored(_admitted()), KEYS)
    assert (pod.held_entries, pod.forged) == ((HELD,), False)
    named = _admitted(generateName="", name="server-0")
    assert parse_pod(_stored(named), KEYS).held_entries == (HELD,)


@pytest.mark.parametrize(
    "change",
    [
        {"namespace": "evil"},
        {"generateName": "other-"},
        {"generateName": ""},
        {"annotations": {names.ENTRIES: format_held_entries((HELD,))}},
    ],
    ids=["another namespace", "another workload", "another name", "not signed"],
)
def test_entries_that_are_copied_to_another_pod_are_not_held(change: Body) -> None:
    pod = parse_pod(_stored(_admitted(), **change), KEYS)
    assert (pod.held_entries, pod.forged) == ((), True)


@pytest.mark.parametrize("annotation", [names.ENTRIES, names.ADMISSION, names.SIGNATURE])
def test_entries_that_are_changed_after_admission_are_not_held(annotation: str) -> None:
    metadata = _admitted()
    metadata["annotations"][annotation] = format_held_entries((HELD, HELD))
    assert parse_pod(_stored(metadata), KEYS).held_entries == ()


def test_the_entries_of_one_admission_are_held_by_one_pod() -> None:
    state = _state()
    state.pods.put(_stored(_admitted(), creationTimestamp="2026-01-01T00:00:00Z"))
    copied = {"name": "server-copy", "uid": "u2", "creationTimestamp": "2026-01-01T00:01:00Z"}
    state.pods.put(_stored(_admitted(), **copied))
    node = state.node("n0")
    assert node
    assert [pod.uid for pod in state.node_snapshot(node, datetime.now(UTC)).consumers] == ["u1"]


@pytest.mark.parametrize(
    "fields",
    [
        {"key": "../../etc"},
        {"key": "a/../r-1"},
        {"key": "r-1\n"},
        {"bytes": 2**63},
        {"bytes": -1},
        {"ranks": "all of them"},
        {"ranks": "0," * held_entries.MAX_RANKS_LENGTH},
        {"verify": "x" * 5000},
        {"revision": "x" * 5000},
    ],
)
def test_even_signed_entries_are_bounded(fields: Body) -> None:
    held = HeldEntry(**{**{name: getattr(HELD, name) for name in HELD.__struct_fields__}, **fields})
    assert parse_pod(_stored(_admitted(held=(held,))), KEYS).held_entries == ()
