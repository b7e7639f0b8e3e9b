"""Responses to range requests are validated."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import msgspec
import pytest

from tonnage.errors import Reason
from tonnage.source.request_target import RequestTarget
from tonnage.source.responses import check_partial, parse_headers, strong_etag

if TYPE_CHECKING:
    from typing import Unpack

    from tonnage.source.request_failure import RequestFailure

TARGET = RequestTarget(url="http://h/b/k", size=100, etag="abc", version_id="v1", label="s3://b/k")
GOOD = {"content-range": "bytes 10-19/100", "etag": '"abc"', "content-length": "10", "x-amz-version-id": "v1"}


class ResponseOverrides(TypedDict, total=False):
    """The differences from a good response."""

    status: int
    content_length: str
    content_range: str
    etag: str
    x_amz_version_id: str


def check(**difference: Unpack[ResponseOverrides]) -> RequestFailure | None:
    headers = {name.replace("_", "-"): str(value) for name, value in difference.items() if name != "status"}
    return check_partial(TARGET, status=difference.get("status", 206), headers={**GOOD, **headers}, start=10, end=20)


def failure_of(**difference: Unpack[ResponseOverrides]) -> RequestFailure:
    failure = check(**difference)
    assert failure is not None
    return failure


def test_the_requested_range_of_the_pinned_revision_is_accepted() -> None:
    assert check() is None


def test_a_response_without_validators_is_accepted() -> None:
    assert check_partial(TARGET, status=206, headers={"content-range": "bytes 10-19/*"}, start=10, end=20) is None


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"etag": '"other"'}, "ETag"),
        ({"etag": 'W/"abc"'}, "ETag"),
        ({"x_amz_version_id": "v2"}, "version"),
        ({"content_range": "bytes 10-19/101"}, "now has 101"),
    ],
)
def test_a_different_object_is_a_changed_source(headers: ResponseOverrides, words: str) -> None:
    failure = failure_of(**headers)
    assert failure.reason is Reason.SOURCE_CHANGED
    assert words in failure.message


@pytest.mark.parametrize(
    ("pinned", "headers", "words"),
    [
        ({"etag": "abc"}, {"etag": '"other"'}, 'its ETag was "abc" and is now "other"'),
        ({"etag": 'W/"abc"'}, {"etag": 'W/"other"'}, 'its ETag was W/"abc" and is now W/"other"'),
        ({"version_id": "v1"}, {"x-amz-version-id": "v2"}, "a version other than the pinned one"),
        ({"last_modified": "Tue, 01 Jul 2025"}, {"last-modified": "Wed, 02 Jul 2025"}, "was last modified on Tue, 01"),
        ({}, {"content-length": "101"}, "it had 100 bytes and now has 101"),
    ],
)
@pytest.mark.parametrize("status", [200, 206])
def test_another_object_is_found_in_a_whole_one_and_in_a_range_of_it(
    pinned: dict[str, str], headers: dict[str, str], words: str, status: int
) -> None:
    target = msgspec.structs.replace(RequestTarget(url="http://h/b/k", size=100, label="k"), **pinned)
    length = headers.get("content-length", "100")
    own = {"content-range": f"bytes 0-99/{length}"} if status == 206 else {}
    failure = check_partial(target, status=status, headers={**own, **headers}, start=0, end=100)
    assert failure is not None
    assert (failure.reason, words in failure.message) == (Reason.SOURCE_CHANGED, True)


@pytest.mark.parametrize("etag", ['"abc"', 'W/"abc"'])
def test_a_weak_etag_is_compared_weakly(etag: str) -> None:
    target = RequestTarget(url="http://h/b/k", size=100, etag='W/"abc"', label="k")
    assert check_partial(target, status=200, headers={"etag": etag}, start=0, end=100) is None


@pytest.mark.parametrize(
    "change",
    [
        {"status": 200},
        {"content_range": "bytes 11-20/100"},
        {"content_range": "bytes 10-18/100"},
        {"content_range": "10-19"},
        {"content_range": ""},
        {"content_length": "11"},
    ],
)
def test_a_different_range_is_an_endpoint_error(change: ResponseOverrides) -> None:
    assert failure_of(**change).reason is Reason.STORE_UNSUPPORTED


def test_a_change_is_reported_even_when_the_range_is_ignored() -> None:
    assert failure_of(status=200, etag='"other"').reason is Reason.SOURCE_CHANGED


def test_the_whole_object_may_come_without_a_range() -> None:
    headers = {"etag": '"abc"', "content-length": "100"}
    assert check_partial(TARGET, status=200, headers=headers, start=0, end=100) is None
    assert check_partial(TARGET, status=200, headers={"content-length": "99"}, start=0, end=100) is not None


def test_only_the_last_block_of_headers_counts() -> None:
    lines = [
        b"HTTP/1.1 302 Found\r\n",
        b"ETag: old\r\n",
        b"\r\n",
        b"HTTP/1.1 206 Partial Content\r\n",
        b"Content-Range:bytes 0-0/5\r\n",
        b"\r\n",
    ]
    assert parse_headers(lines) == (206, {"content-range": "bytes 0-0/5"})


def test_lines_that_are_not_headers_are_ignored() -> None:
    assert parse_headers([b"HTTP/1.1\r\n", b"nonsense\r\n", b"\xff: x\r\n"])[0] == 0


@pytest.mark.parametrize(("header", "etag"), [('"a"', "a"), ("a", "a"), ('W/"a"', ""), ("", ""), (' "a-2" ', "a-2")])
def test_strong_etags_lose_their_quotes(header: str, etag: str) -> None:
    assert strong_etag(header) == etag


@pytest.mark.parametrize("number", ["9" * 5000, "\xb2"])
def test_numbers_that_are_too_long_or_not_ascii_are_rejected(number: str) -> None:
    assert failure_of(content_range=f"bytes {number}-{number}/{number}").reason is Reason.STORE_UNSUPPORTED
    assert parse_headers([f"HTTP/1.1 {number} x".encode("latin-1")])[0] == 0
