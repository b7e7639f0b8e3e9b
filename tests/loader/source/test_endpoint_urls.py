"""Encoding, splitting, addressing and redacting URLs."""

from __future__ import annotations

import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tonnage.contract import AddressingStyle
from tonnage.errors import InvalidPlan
from tonnage.source.endpoint_urls import (
    aws_endpoint,
    bucket_url,
    check_bucket,
    check_endpoint,
    is_presigned,
    quote,
    quote_key,
    redact_url,
    split_url,
    unquote,
)

AWS = "https://s3.eu-west-1.amazonaws.com"
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=50, deadline=None)
@given(texts)
def test_quoting_is_that_of_the_standard_library(text: str) -> None:
    assert quote(text) == urllib.parse.quote(text, safe="-_.~")
    assert quote_key(text) == urllib.parse.quote(text, safe="/-_.~")


@settings(max_examples=50, deadline=None)
@given(texts)
def test_unquoting_reverses_quoting(text: str) -> None:
    assert unquote(quote(text)) == text
    assert unquote(urllib.parse.quote_plus(text), plus=True) == text


@pytest.mark.parametrize(("text", "wanted"), [("50%", "50%"), ("%zz", "%zz"), ("%4", "%4"), ("a%20b", "a b")])
def test_a_percent_sign_that_encodes_nothing_is_kept(text: str, wanted: str) -> None:
    assert unquote(text) == wanted


def test_a_url_splits_into_its_parts() -> None:
    assert split_url("HTTPS://user:pw@host:8/a/b?x=1&y#frag") == ("https", "user:pw", "host:8", "/a/b", "x=1&y")


@pytest.mark.parametrize("text", ["", "host/path", "http://", "http:///path", "/a", "://x"])
def test_only_absolute_urls_are_split(text: str) -> None:
    assert split_url(text) is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h/x.tensors?X-Amz-Signature=abc", "https://h/x.tensors"),
        ("https://u:p@h:1/x#f", "https://h:1/x"),
        ("u:p@h/x?token=1", "h/x"),
    ],
)
def test_redacted_urls_have_no_query_user_or_fragment(url: str, shown: str) -> None:
    assert redact_url(url) == shown


def test_presigned_urls_are_recognized() -> None:
    assert is_presigned("https://h/x?X-Amz-Credential=a&X-Amz-Signature=b")
    assert is_presigned("https://h/x?sig=b&sv=1")
    assert not is_presigned("https://h/x?versionId=3")
    assert not is_presigned("nonsense")


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("eu-west-1", "s3.eu-west-1.amazonaws.com"),
        ("cn-north-1", "s3.cn-north-1.amazonaws.com.cn"),
        ("us-gov-west-1", "s3.us-gov-west-1.amazonaws.com"),
    ],
)
def test_each_partition_has_its_domain(region: str, host: str) -> None:
    assert aws_endpoint(region) == f"https://{host}"


def test_dualstack_and_fips_have_their_hosts() -> None:
    assert aws_endpoint("us-east-1", dualstack=True) == "https://s3.dualstack.us-east-1.amazonaws.com"
    assert aws_endpoint("us-east-1", fips=True) == "https://s3-fips.us-east-1.amazonaws.com"


@pytest.mark.parametrize("region", ["", "us east", "evil.example/", "x" * 65])
def test_invalid_regions_are_rejected(region: str) -> None:
    with pytest.raises(InvalidPlan, match="region"):
        aws_endpoint(region)


@pytest.mark.parametrize(
    ("style", "bucket", "aws", "url"),
    [
        (AddressingStyle.AUTO, "models", True, "https://models.s3.eu-west-1.amazonaws.com"),
        (AddressingStyle.AUTO, "my.models", True, "https://s3.eu-west-1.amazonaws.com/my.models"),
        (AddressingStyle.AUTO, "My_Bucket.Models", True, "https://s3.eu-west-1.amazonaws.com/My_Bucket.Models"),
        (AddressingStyle.AUTO, "models", False, "https://s3.eu-west-1.amazonaws.com/models"),
        (AddressingStyle.PATH, "models", True, "https://s3.eu-west-1.amazonaws.com/models"),
        (AddressingStyle.VIRTUAL, "my.models", False, "https://my.models.s3.eu-west-1.amazonaws.com"),
    ],
)
def test_the_style_determines_the_place_of_the_bucket(style: AddressingStyle, bucket: str, aws: bool, url: str) -> None:
    assert bucket_url(AWS, bucket, style, aws=aws) == url


def test_an_endpoint_may_have_a_path_and_a_trailing_slash() -> None:
    assert check_endpoint("HTTP://host:1/base/") == "http://host:1/base"


@pytest.mark.parametrize("endpoint", ["host:9000", "ftp://h", "https://u:secret@h", "https://h?token=secret", "s3://b"])
def test_invalid_endpoints_are_rejected_without_repeating_secrets(endpoint: str) -> None:
    with pytest.raises(InvalidPlan) as caught:
        check_endpoint(endpoint)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("bucket", ["", "a", "with space", "a/b", "b--x-s3", "arn:aws:s3:::b"])
def test_invalid_aws_buckets_are_rejected(bucket: str) -> None:
    with pytest.raises(InvalidPlan):
        check_bucket(bucket, aws=True)


def test_other_stores_have_less_strict_bucket_names() -> None:
    check_bucket("Tenant:Bucket_1", aws=False)
    with pytest.raises(InvalidPlan):
        check_bucket("a/b", aws=False)
