"""Classification of failed requests."""

from __future__ import annotations

import email.utils
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tonnage.errors import Reason, error_classes
from tonnage.source.error_classification import classify, parse_http_date, parse_retry_after, redact
from tonnage.source.request_failure import Retry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage.source.request_failure import RequestFailure

LABEL = "s3://bucket/model.tensors"
NOW = 1_750_000_000.0


def classify_status(
    status: int,
    code: str = "",
    message: str = "",
    headers: Mapping[str, str] | None = None,
    extra: str = "",
    *,
    pinned: bool = False,
) -> RequestFailure:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message>{extra}</Error>".encode() if code else b""
    return classify(
        curl_code=None, status=status, headers=headers or {}, body=body, label=LABEL, pinned=pinned, now=NOW
    )


def curl_failure(code: int, *, connected: bool = True) -> RequestFailure:
    return classify(curl_code=code, status=None, headers={}, body=b"", label=LABEL, connected=connected)


@pytest.mark.parametrize(
    ("status", "code", "reason", "retry"),
    [
        (403, "", Reason.ACCESS_DENIED, Retry.NEVER),
        (401, "", Reason.ACCESS_DENIED, Retry.NEVER),
        (407, "", Reason.ACCESS_DENIED, Retry.NEVER),
        (403, "AccessDenied", Reason.ACCESS_DENIED, Retry.NEVER),
        (403, "InvalidAccessKeyId", Reason.ACCESS_DENIED, Retry.NEVER),
        (403, "SignatureDoesNotMatch", Reason.ACCESS_DENIED, Retry.NEVER),
        (403, "InvalidObjectState", Reason.ACCESS_DENIED, Retry.NEVER),
        (400, "ExpiredToken", Reason.CREDENTIALS_EXPIRED, Retry.REFRESH_CREDENTIALS),
        (403, "ExpiredToken", Reason.CREDENTIALS_EXPIRED, Retry.REFRESH_CREDENTIALS),
        (403, "RequestTimeTooSkewed", Reason.REQUEST_TIME_TOO_SKEWED, Retry.NEVER),
        (404, "NoSuchKey", Reason.OBJECT_NOT_FOUND, Retry.NEVER),
        (404, "", Reason.OBJECT_NOT_FOUND, Retry.NEVER),
        (404, "NoSuchBucket", Reason.BUCKET_NOT_FOUND, Retry.NEVER),
        (412, "PreconditionFailed", Reason.SOURCE_CHANGED, Retry.NEVER),
        (416, "InvalidRange", Reason.SOURCE_CHANGED, Retry.NEVER),
        (429, "", Reason.RETRIES_EXHAUSTED, Retry.BACKOFF),
        (500, "InternalError", Reason.RETRIES_EXHAUSTED, Retry.BACKOFF),
        (502, "", Reason.RETRIES_EXHAUSTED, Retry.BACKOFF),
        (503, "SlowDown", Reason.RETRIES_EXHAUSTED, Retry.BACKOFF),
        (504, "", Reason.RETRIES_EXHAUSTED, Retry.BACKOFF),
        (400, "RequestTimeout", Reason.RETRIES_EXHAUSTED, Retry.BACKOFF),
        (302, "", Reason.ENDPOINT_UNREACHABLE, Retry.NEVER),
        (501, "NotImplemented", Reason.STORE_UNSUPPORTED, Retry.NEVER),
        (405, "MethodNotAllowed", Reason.STORE_UNSUPPORTED, Retry.NEVER),
        (418, "", Reason.REQUEST_REJECTED, Retry.NEVER),
        (400, "InvalidArgument", Reason.REQUEST_REJECTED, Retry.NEVER),
    ],
)
def test_each_status_has_its_reason(status: int, code: str, reason: Reason, retry: Retry) -> None:
    failure = classify_status(status, code, "words")
    assert (failure.reason, failure.retry) == (reason, retry)
    assert failure.message.startswith(f"{LABEL}: ")
    assert str(status) in failure.message
    assert type(failure.to_exception()) is error_classes()[reason]


@pytest.mark.parametrize(
    ("status", "code", "throttled"),
    [
        (503, "SlowDown", True),
        (429, "", True),
        (400, "RequestLimitExceeded", True),
        (500, "InternalError", False),
        (404, "NoSuchKey", False),
    ],
)
def test_a_store_with_too_many_requests_is_no_store_that_fails(status: int, code: str, *, throttled: bool) -> None:
    assert classify_status(status, code).throttled is throttled


@pytest.mark.parametrize(
    ("code", "reason", "retry"),
    [
        (6, Reason.ENDPOINT_UNREACHABLE, Retry.BACKOFF),
        (7, Reason.ENDPOINT_UNREACHABLE, Retry.BACKOFF),
        (8, Reason.ENDPOINT_UNREACHABLE, Retry.NEVER),
        (18, Reason.RETRIES_EXHAUSTED, Retry.BACKOFF),
        (28, Reason.RETRIES_EXHAUSTED, Retry.BACKOFF),
        (35, Reason.TLS_VERIFICATION_FAILED, Retry.BACKOFF),
        (52, Reason.RETRIES_EXHAUSTED, Retry.BACKOFF),
        (56, Reason.RETRIES_EXHAUSTED, Retry.BACKOFF),
        (60, Reason.TLS_VERIFICATION_FAILED, Retry.NEVER),
        (77, Reason.TLS_VERIFICATION_FAILED, Retry.NEVER),
        (99, Reason.RETRIES_EXHAUSTED, Retry.BACKOFF),
    ],
)
def test_each_curl_error_has_its_reason(code: int, reason: Reason, retry: Retry) -> None:
    failure = curl_failure(code)
    assert (failure.reason, failure.retry) == (reason, retry)
    assert f"curl {code}" in failure.message


def test_a_timeout_before_the_connection_is_an_unreachable_endpoint() -> None:
    assert curl_failure(28, connected=False).reason is Reason.ENDPOINT_UNREACHABLE


def test_a_missing_pinned_object_is_a_changed_source() -> None:
    assert classify_status(404, "NoSuchKey", pinned=True).reason is Reason.SOURCE_CHANGED
    assert classify_status(404, "NoSuchVersion", pinned=True).reason is Reason.SOURCE_CHANGED
    assert classify_status(404, "NoSuchBucket", pinned=True).reason is Reason.BUCKET_NOT_FOUND


def test_an_expired_presigned_url_is_distinguished_from_a_denial() -> None:
    failure = classify_status(403, "AccessDenied", "Request has expired")
    assert failure.reason is Reason.CREDENTIALS_EXPIRED
    assert "presigned URL" in failure.message


def test_a_denial_without_a_message_mentions_a_missing_object() -> None:
    assert "may not list the bucket" in classify_status(403).message


def test_a_denial_includes_the_servers_message() -> None:
    assert (
        "not authorized to perform"
        in classify_status(403, "AccessDenied", "User x is not authorized to perform y").message
    )


@pytest.mark.parametrize(
    ("status", "code", "headers", "extra"),
    [
        (301, "PermanentRedirect", {}, "<Region>eu-west-3</Region>"),
        (301, "", {"x-amz-bucket-region": "eu-west-3"}, ""),
        (307, "TemporaryRedirect", {"x-amz-bucket-region": "eu-west-3"}, ""),
        (400, "AuthorizationHeaderMalformed", {}, "<Region>eu-west-3</Region>"),
        (400, "", {"x-amz-bucket-region": "eu-west-3"}, ""),
    ],
)
def test_the_region_named_by_the_server_is_reported(
    status: int, code: str, headers: dict[str, str], extra: str
) -> None:
    failure = classify_status(status, code, "words", headers=headers, extra=extra)
    assert failure.region == "eu-west-3"
    assert failure.reason is Reason.ACCESS_DENIED
    assert "eu-west-3" in failure.message


def test_the_region_of_an_unrelated_error_is_ignored() -> None:
    assert classify_status(403, "AccessDenied", headers={"x-amz-bucket-region": "eu-west-3"}).region == ""


def test_an_invalid_region_is_ignored() -> None:
    assert classify_status(301, "", headers={"x-amz-bucket-region": "evil.example/?"}).region == ""


def test_clock_differences_are_stated() -> None:
    theirs = email.utils.formatdate(NOW - 3600, usegmt=True)
    assert "3600 s ahead of" in classify_status(403, "RequestTimeTooSkewed", headers={"date": theirs}).message
    server_time = "<ServerTime>2025-06-15T15:11:40Z</ServerTime>"
    assert "behind" in classify_status(403, "RequestTimeTooSkewed", "m", extra=server_time).message
    assert "differ too much" in classify_status(403, "RequestTimeTooSkewed").message


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("17", 17.0),
        (email.utils.formatdate(NOW + 30, usegmt=True), 30.0),
        (email.utils.formatdate(NOW - 30, usegmt=True), 0.0),
        ("soon", None),
        ("", None),
        ("-5", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds
    assert classify_status(503, "SlowDown", headers={"retry-after": value}).retry_after == seconds


def test_invalid_dates_are_none() -> None:
    assert parse_http_date("Tue, 99 Foo 2025 99:99:99 GMT") is None


@pytest.mark.parametrize(
    "text",
    [
        "see https://h/x?X-Amz-Signature=SECRET&a=b for more",
        "X-Amz-Security-Token=SECRET",
        "AWSAccessKeyId: SECRET, more",
        "key AKIASECRETSECRET1234 is unknown",
    ],
)
def test_redacted_messages_have_no_secret(text: str) -> None:
    assert "SECRET" not in redact(text)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=2000))
def test_redacted_messages_are_one_short_line(text: str) -> None:
    assert len(redact(text)) <= 300
    assert "\n" not in redact(text)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 599), st.binary(max_size=200), st.dictionaries(st.sampled_from(["retry-after", "date"]), st.text())
)
def test_any_response_gets_a_message(status: int, body: bytes, headers: dict[str, str]) -> None:
    failure = classify(curl_code=None, status=status, headers=headers, body=body, label=LABEL, now=NOW)
    assert failure.message.endswith(").")


def test_signature_details_of_the_store_are_not_repeated() -> None:
    extra = "<AWSAccessKeyId>KEYID</AWSAccessKeyId><StringToSign>STS</StringToSign><Signature>SIG</Signature>"
    message = classify_status(403, "SignatureDoesNotMatch", "The request signature we calculated", extra=extra).message
    assert not any(word in message for word in ("KEYID", "STS", "SIG"))
