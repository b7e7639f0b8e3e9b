"""Signatures of requests: botocore's signer is the judge, and a real S3 server."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tonnage.source.endpoint_urls import quote, quote_key
from tonnage.source.sigv4 import Credentials, signed_headers

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = dt.datetime(2025, 6, 15, 15, 6, 40, tzinfo=dt.UTC)
PRINTABLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="/,")
HOSTS = ["s3.eu-west-1.amazonaws.com", "127.0.0.1:9000", "b.store.example:443", "[::1]:80", "Upper.example"]


def botocore_authorization(
    method: str, url: str, region: str, credentials: Credentials, headers: Mapping[str, str]
) -> str:
    """Returns the header that botocore makes of the same request, at the same time."""
    request = botocore.awsrequest.AWSRequest(method=method, url=url, headers=dict(headers))
    request.context["payload_signing_enabled"] = True
    keys = botocore.credentials.Credentials(
        credentials.access_key, credentials.secret_key, credentials.session_token or None
    )
    signer = botocore.auth.S3SigV4Auth(keys, "s3", region)
    request.context["timestamp"] = NOW.strftime("%Y%m%dT%H%M%SZ")
    signer._modify_request_before_signing(request)
    canonical = signer.canonical_request(request)
    signature = signer.signature(signer.string_to_sign(request, canonical), request)
    signer._inject_signature_to_request(request, signature)
    return str(request.headers["Authorization"])


@settings(max_examples=150, deadline=None)
@given(
    method=st.sampled_from(["GET", "HEAD"]),
    scheme=st.sampled_from(["http", "https"]),
    host=st.sampled_from(HOSTS),
    key=st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    query=st.dictionaries(
        st.sampled_from(["prefix", "list-type", "a", "a-b", "a.b", "versionId"]), st.text(max_size=6), max_size=4
    ),
    access_key=st.text(PRINTABLE, min_size=1, max_size=20),
    secret=st.text(PRINTABLE, min_size=1, max_size=40),
    token=st.text(PRINTABLE, max_size=20),
    pays=st.booleans(),
)
def test_signatures_are_those_of_botocore(
    method: str,
    scheme: str,
    host: str,
    key: str,
    query: dict[str, str],
    access_key: str,
    secret: str,
    token: str,
    pays: bool,
) -> None:
    text = "&".join(f"{quote(name)}={quote(value)}" for name, value in sorted(query.items()))
    url = f"{scheme}://{host}/bucket/{quote_key(key)}" + (f"?{text}" if text else "")
    credentials = Credentials(access_key=access_key, secret_key=secret, session_token=token)
    headers = {"x-amz-request-payer": "requester"} if pays else {}
    ours = signed_headers(
        method, url, region="eu-west-1", credentials=credentials, headers=headers, now=NOW.timestamp()
    )
    assert ours["authorization"] == botocore_authorization(method, url, "eu-west-1", credentials, headers)


def test_only_an_absolute_url_is_signed() -> None:
    with pytest.raises(ValueError, match="absolute"):
        signed_headers(
            "GET", "/x", region="r", credentials=Credentials(access_key="a", secret_key="b"), headers={}, now=0.0
        )
