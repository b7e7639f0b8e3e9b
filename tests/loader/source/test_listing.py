"""Pages of a listing."""

from __future__ import annotations

import pytest

from tonnage.errors import EndpointUnreachable
from tonnage.source.listing import list_query, parse_page


def page(inner: str) -> str:
    return f'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inner}</ListBucketResult>'


def test_a_query_is_sorted_and_strictly_encoded() -> None:
    query = list_query("a b/+é", token="x=/+")
    assert query == (
        "continuation-token=x%3D%2F%2B&encoding-type=url&list-type=2&max-keys=1000&prefix=a%20b%2F%2B%C3%A9"
    )


def test_a_page_gives_keys_sizes_and_the_token() -> None:
    text = page(
        "<IsTruncated>true</IsTruncated><NextContinuationToken>t&amp;k</NextContinuationToken>"
        "<EncodingType>url</EncodingType><Prefix>x</Prefix>"
        "<Contents><Key>a+b%2Fc%0A</Key><Size>12</Size><Owner><ID>Key</ID></Owner></Contents>"
        "<Contents><Key>d</Key><Size>0</Size></Contents>"
    )
    assert parse_page(text.encode(), label="s3://b") == ((("a b/c\n", 12), ("d", 0)), "t&k")


def test_keys_are_not_decoded_if_the_server_did_not_encode_them() -> None:
    text = page("<IsTruncated>false</IsTruncated><Contents><Key>a+b%2F&lt;</Key><Size>1</Size></Contents>")
    assert parse_page(text.encode(), label="s3://b") == ((("a+b%2F<", 1),), "")


def test_a_token_on_the_last_page_is_not_followed() -> None:
    text = page("<IsTruncated>false</IsTruncated><NextContinuationToken>t</NextContinuationToken>")
    assert parse_page(text.encode(), label="s3://b").token == ""


@pytest.mark.parametrize(
    "body",
    [b"", b"hello", b"<html><body>x</body></html>", page("<Contents><Size>x</Size></Contents>").encode(), b"<a>"],
)
def test_a_body_that_is_not_a_listing_means_no_s3_server(body: bytes) -> None:
    with pytest.raises(EndpointUnreachable, match="s3://b: the response is not an S3 listing"):
        parse_page(body, label="s3://b")
