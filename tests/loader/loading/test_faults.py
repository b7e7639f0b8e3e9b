"""Loads from a faulty server, over real sockets."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.faults import Fault, expired_token, slow_down
from support.load_harness import BOTH_KINDS, SMALL_LIMITS
from support.models import (
    assert_tensors_equal,
    load_safetensors_dir,
    make_tensors,
    to_safetensors_file,
    to_tensors_file,
)
from tonnage.contract import HttpSource, Outcome, Plan
from tonnage.errors import (
    AccessDenied,
    ChecksumMismatch,
    CredentialsExpired,
    FormatDamaged,
    RequestTimeTooSkewed,
    RetriesExhausted,
    SourceChanged,
    StoreUnsupported,
    TonnageError,
)
from tonnage.loading import run_plan
from tonnage.source.backoff import backoff_seconds
from tonnage.transfer import body, coordinator

if TYPE_CHECKING:
    from support.load_harness import IsPartRequest, LoadHarness


@pytest.fixture(autouse=True)
def _pair(weights_kind: str, receive_library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault meets both kinds of sources and both ways of receiving, but not each with each."""
    monkeypatch.setattr(body, "LIBRARY", receive_library if weights_kind == "tensors" else "")


PASSING = {
    "500": Fault(status=500, body=b"<Error><Code>InternalError</Code></Error>"),
    "502 with a page of HTML": Fault(status=502, body=b"<html>bad gateway</html>"),
    "503 with Retry-After": slow_down(retry_after="1"),
    "429": Fault(status=429),
    "a reset in the middle": Fault(reset_after=50_000),
    "an end in the middle": Fault(close_after=70_001),
    "no answer at all": Fault(drop_connection=True),
    "a stall in the middle": Fault(stall_after=60_000),
    "a stall before the answer": Fault(stall_before=True),
    "a shorter range": Fault(shorten=1000),
    "another range": Fault(shift=512),
    "the whole object instead of a range": Fault(ignore_range=True),
    "more bytes than announced": Fault(extra=b"x" * 5000, close=True),
    "more bytes than asked": Fault(extra=b"x" * 5000, announce_extra=True),
    "chunked encoding": Fault(chunked=True),
    "more bytes than asked, in chunks": Fault(chunked=True, extra=b"x" * 100_000),
}


@BOTH_KINDS
@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
def test_a_transient_failure_costs_only_a_retry(
    harness: LoadHarness, is_part_request: IsPartRequest, fault: Fault
) -> None:
    harness.server.add_fault(fault, when=is_part_request, skip=2, times=3)
    report = harness.load()
    assert report.outcome is Outcome.LOADED
    harness.assert_loaded(report)


@BOTH_KINDS
def test_bytes_received_before_a_reset_are_not_fetched_again(
    harness: LoadHarness, is_part_request: IsPartRequest
) -> None:
    harness.server.add_fault(Fault(reset_after=200_000), when=is_part_request, times=2)
    report = harness.load()
    assert report.retries >= 1
    starts = [
        request.range[0] for request in harness.server.find_requests(method="GET", key=harness.key) if request.range
    ]
    assert len(starts) == len(set(starts))
    assert report.downloaded_bytes < len(harness.tensors_file) + 300_000


LASTING: dict[str, tuple[Fault, type[TonnageError]]] = {
    "500": (Fault(status=500), RetriesExhausted),
    "503": (slow_down(), RetriesExhausted),
    "Range ignored": (Fault(ignore_range=True), StoreUnsupported),
    "another range": (Fault(shift=512), StoreUnsupported),
    "access denied": (Fault(status=403, body=b"<Error><Code>AccessDenied</Code></Error>"), AccessDenied),
    "the clock": (
        Fault(status=403, body=b"<Error><Code>RequestTimeTooSkewed</Code></Error>"),
        RequestTimeTooSkewed,
    ),
    "another ETag": (Fault(etag='"0123456789abcdef0123456789abcdef"'), SourceChanged),
    "another size": (Fault(total_offset=1), SourceChanged),
    "expired for good": (expired_token(), CredentialsExpired),
}


@BOTH_KINDS
@pytest.mark.parametrize(("fault", "expected"), LASTING.values(), ids=LASTING.keys())
def test_a_permanent_failure_has_its_reason_and_leaves_nothing_visible(
    harness: LoadHarness,
    is_part_request: IsPartRequest,
    fault: Fault,
    expected: type[TonnageError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tonnage.transfer.coordinator.MAX_ATTEMPTS", 2)
    monkeypatch.setattr("tonnage.transfer.coordinator.THROTTLED_SECONDS", 0)
    harness.server.add_fault(fault, when=is_part_request, skip=2)
    with pytest.raises(expected) as caught:
        harness.load()
    assert f"s3://{harness.key}" in caught.value.message
    assert caught.value.details["revision"]
    harness.assert_nothing_visible()
    harness.server.clear_faults()
    harness.assert_loaded(harness.load())


@BOTH_KINDS
@pytest.mark.parametrize(("fault", "succeeds"), [(slow_down(), True), (Fault(status=500), False)], ids=["503", "500"])
def test_a_store_with_too_many_requests_is_asked_again_as_long_as_bytes_arrive(
    harness: LoadHarness,
    is_part_request: IsPartRequest,
    monkeypatch: pytest.MonkeyPatch,
    *,
    fault: Fault,
    succeeds: bool,
) -> None:
    monkeypatch.setattr("tonnage.transfer.coordinator.MAX_ATTEMPTS", 2)
    refused: set[tuple[int, int | None]] = set()

    def is_refused(request: Any) -> bool:
        """Refuses the first part, and all parts that begin where it does."""
        if is_part_request(request) and not refused:
            refused.add(request.range)
        return is_part_request(request) and request.range in refused

    harness.server.add_fault(fault, when=is_refused, times=6)
    if succeeds:
        harness.assert_loaded(harness.load())
    else:
        with pytest.raises(RetriesExhausted):
            harness.load()


def test_attempts_are_bounded_so_that_waiting_ends() -> None:
    tries = range(1, coordinator.MAX_ATTEMPTS + 1)
    waiting = sum(backoff_seconds(number, maximum=coordinator.MAX_BACKOFF_SECONDS, jitter=0.99) for number in tries)
    assert 10 < waiting < 60


@BOTH_KINDS
def test_an_object_replaced_during_the_load_is_detected_and_versions_are_never_mixed(
    harness: LoadHarness, is_part_request: IsPartRequest
) -> None:
    write = to_tensors_file if harness.key.endswith(".tensors") else to_safetensors_file
    replacement = write(make_tensors(seed=7))
    assert len(replacement) == len(harness.tensors_file)

    def replace_after_three(request: Any) -> bool:
        if is_part_request(request) and sum(map(is_part_request, harness.server.find_requests())) == 3:
            harness.server.put(harness.key, replacement)
        return False

    harness.server.add_fault(Fault(), when=replace_after_three)
    with pytest.raises(SourceChanged):
        harness.load()
    harness.assert_nothing_visible()


@pytest.mark.parametrize(
    ("pinned", "changed"),
    [
        ({}, {"ETag": '"another"'}),
        ({"ETag": 'W/"one"'}, {"ETag": 'W/"another"'}),
        ({"ETag": None}, {"Last-Modified": "Wed, 02 Jul 2025 12:00:00 GMT", "ETag": None}),
    ],
    ids=["ETag", "weak ETag", "Last-Modified"],
)
@pytest.mark.parametrize("ignore_range", [True, False])
def test_a_companion_that_was_replaced_is_found_though_the_server_ignores_preconditions(
    harness: LoadHarness, pinned: dict[str, str | None], changed: dict[str, str | None], *, ignore_range: bool
) -> None:
    key = "bucket/model/config.json"
    harness.server.add_fault(Fault(headers=pinned), method="HEAD", key=key)
    fault = Fault(headers=changed, ignore_range=ignore_range)
    harness.server.add_fault(fault, method="GET", key=key)
    urls = (f"{harness.server.url}/{harness.key}", f"{harness.server.url}/{key}")
    with pytest.raises(SourceChanged, match=r"config\.json: the object was replaced"):
        run_plan(Plan(sources=(HttpSource(urls=urls),), limits=SMALL_LIMITS), cache=harness.cache, environment={})
    harness.assert_nothing_visible()


@BOTH_KINDS
def test_an_object_deleted_during_the_load_is_a_change_of_the_source(
    harness: LoadHarness, is_part_request: IsPartRequest
) -> None:
    def delete_after_three(request: Any) -> bool:
        if is_part_request(request) and sum(map(is_part_request, harness.server.find_requests())) == 3:
            harness.server.delete(harness.key)
        return False

    harness.server.add_fault(Fault(), when=delete_after_three)
    with pytest.raises(SourceChanged):
        harness.load()


def data_offset(harness: LoadHarness) -> int:
    """An offset inside the data of a tensor in the middle."""
    return harness.body + (len(harness.tensors_file) - harness.body) // 2


@BOTH_KINDS
def test_a_bit_flipped_in_transit_is_fetched_again_over_another_connection(
    harness: LoadHarness, is_part_request: IsPartRequest
) -> None:
    at = data_offset(harness)

    def covers(request: Any) -> bool:
        return is_part_request(request) and request.range[0] <= at <= request.range[1]

    harness.server.add_fault(Fault(flip=at), when=covers, times=1)
    report = harness.load()
    assert report.retries == 1
    harness.assert_loaded(report)
    covering = [request for request in harness.server.find_requests() if covers(request)]
    assert len(covering) == 2
    assert covering[0].connection != covering[1].connection


@BOTH_KINDS
def test_a_bit_flipped_in_the_store_is_reported_with_tensor_object_and_offset(
    harness: LoadHarness, is_part_request: IsPartRequest, weights_kind: str
) -> None:
    """Of safetensors with the object and its checksum: no tensor holds one."""
    harness.server.add_fault(Fault(flip=data_offset(harness)), when=is_part_request)
    with pytest.raises(ChecksumMismatch) as caught:
        harness.load()
    expected = {
        "tensors": r"s3://bucket/model/weights\.tensors: tensor 'layers\.\d+\.weight' \(bytes \d+ to \d+\)",
        "safetensors": r"s3://bucket/model/model\.safetensors does not match the MD5 that its source states, md5:\w+",
    }
    assert re.search(expected[weights_kind], caught.value.message)
    harness.assert_nothing_visible()


@BOTH_KINDS
def test_without_verification_a_flipped_bit_passes_and_is_reported_as_unverified(
    harness: LoadHarness, is_part_request: IsPartRequest
) -> None:
    harness.server.add_fault(Fault(flip=data_offset(harness)), when=is_part_request)
    assert harness.load(verify="none").verified == "none"


@pytest.mark.usefixtures("receiver")
def test_with_sha256_a_flipped_bit_is_detected(harness: LoadHarness, is_part_request: IsPartRequest) -> None:
    harness.server.add_fault(Fault(flip=data_offset(harness)), when=is_part_request)
    with pytest.raises(ChecksumMismatch):
        harness.load(verify="sha256")


@pytest.mark.usefixtures("receiver")
def test_a_header_that_disagrees_with_the_index_is_damage(harness: LoadHarness, is_part_request: IsPartRequest) -> None:
    first_header = harness.body
    harness.server.add_fault(Fault(flip=first_header + 12), when=is_part_request)
    with pytest.raises((FormatDamaged, ChecksumMismatch), match=r"weights\.tensors"):
        harness.load()
    harness.assert_nothing_visible()


@pytest.mark.usefixtures("receiver")
def test_a_missing_terminator_is_damage(harness: LoadHarness, is_part_request: IsPartRequest) -> None:
    harness.server.add_fault(Fault(flip=len(harness.tensors_file) - 3), when=is_part_request)
    with pytest.raises(FormatDamaged, match="end mark"):
        harness.load()


@BOTH_KINDS
def test_credentials_that_expire_during_the_load_are_renewed(
    harness: LoadHarness, is_part_request: IsPartRequest, tmp_path: Path
) -> None:
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "AWS_ACCESS_KEY_ID").write_text("AKIDEXAMPLE")
    (folder / "AWS_SECRET_ACCESS_KEY").write_text("not-a-secret")
    (folder / "AWS_SESSION_TOKEN").write_text("first")
    (tmp_path / "second").write_text("second")

    def is_old(request: Any) -> bool:
        old = is_part_request(request) and request.headers.get("x-amz-security-token") == "first"
        if old and sum(map(is_part_request, harness.server.find_requests())) > 3:
            with contextlib.suppress(FileNotFoundError):  # another request was first
                (tmp_path / "second").rename(folder / "AWS_SESSION_TOKEN")
            return True
        return False

    harness.server.add_fault(expired_token(), when=is_old)
    report = harness.load(environment={"TONNAGE_CREDENTIALS_DIR": str(folder)})
    harness.assert_loaded(report)
    tokens = {
        request.headers.get("x-amz-security-token")
        for request in harness.server.find_requests(method="GET", key=harness.key)
    }
    assert tokens == {"first", "second"}


EXPIRED_URL = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


@BOTH_KINDS
@pytest.mark.parametrize("words", [EXPIRED_URL, b"AuthenticationFailed"])
def test_an_expired_presigned_url_is_reloaded_from_the_plans_file(
    harness: LoadHarness, is_part_request: IsPartRequest, tmp_path: Path, words: bytes
) -> None:
    urls, renewed = tmp_path / "urls", tmp_path / "renewed"
    urls.write_text(f"{harness.server.url}/{harness.key}?X-Amz-Signature=old\n")
    renewed.write_text(f"{harness.server.url}/{harness.key}?X-Amz-Signature=new\n")

    def is_old(request: Any) -> bool:
        old = is_part_request(request) and "old" in request.raw_query
        if old and sum(map(is_part_request, harness.server.find_requests())) > 3:
            with contextlib.suppress(FileNotFoundError):  # another request was first
                renewed.rename(urls)
            return True
        return False

    harness.server.add_fault(Fault(status=403, reason="Forbidden", body=words), when=is_old)
    plan = Plan(sources=(HttpSource(urls_file=str(urls)),), limits=SMALL_LIMITS)
    report = run_plan(plan, cache=harness.cache, environment={}).report
    assert_tensors_equal(load_safetensors_dir(Path(report.path)), harness.tensors)
    assert report.retries >= 1
    queries = [
        request.raw_query.rpartition("=")[2] for request in harness.server.find_requests(method="GET", key=harness.key)
    ]
    assert set(queries) == {"old", "new"}


@BOTH_KINDS
def test_a_presigned_url_that_stays_expired_is_an_error(
    harness: LoadHarness, is_part_request: IsPartRequest, tmp_path: Path
) -> None:
    (tmp_path / "urls").write_text(f"{harness.server.url}/{harness.key}?X-Amz-Signature=secret\n")
    harness.server.add_fault(Fault(status=403, reason="Forbidden", body=EXPIRED_URL), when=is_part_request, skip=2)
    plan = Plan(sources=(HttpSource(urls_file=str(tmp_path / "urls")),), limits=SMALL_LIMITS)
    with pytest.raises(CredentialsExpired) as caught:
        run_plan(plan, cache=harness.cache, environment={})
    assert "secret" not in caught.value.message
