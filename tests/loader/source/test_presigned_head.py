"""The proof that a load shows to peers: botocore's own signature is the judge."""

from __future__ import annotations

import datetime as dt
from unittest import mock
from urllib.parse import parse_qsl, urlsplit

from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials
from hypothesis import given
from hypothesis import strategies as st

from tonnage.source.endpoint_urls import quote_key
from tonnage.source.sigv4 import Credentials, presigned_url

NOW = 1_764_100_000.0


@given(
    key=st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=30),
    token=st.sampled_from(["", "Fwo/GZ+a=="]),
    host=st.sampled_from(["https://bucket.s3.eu-west-1.amazonaws.com", "http://127.0.0.1:8333/bucket"]),
    version=st.sampled_from(["", "?versionId=3%2FL4kqtJlcpXro"]),
)
def test_a_presigned_head_has_the_signature_that_botocore_computes(
    key: str, token: str, host: str, version: str
) -> None:
    url = f"{host}/{quote_key(key)}{version}"
    request = AWSRequest(method="HEAD", url=url)
    credentials = BotocoreCredentials("AKIDEXAMPLE", "secret/key+", token or None)
    moment = dt.datetime.fromtimestamp(NOW, dt.UTC).replace(tzinfo=None)
    with mock.patch("botocore.auth.get_current_datetime", return_value=moment):
        S3SigV4QueryAuth(credentials, "s3", "eu-west-1", 300).add_auth(request)
    own = presigned_url(
        "HEAD",
        url,
        region="eu-west-1",
        credentials=Credentials(access_key="AKIDEXAMPLE", secret_key="secret/key+", session_token=token),
        requester_pays=False,
        now=NOW,
        seconds=300,
    )
    assert urlsplit(own)[:3] == urlsplit(request.url)[:3]
    assert dict(parse_qsl(urlsplit(own).query)) == dict(parse_qsl(urlsplit(request.url).query))
