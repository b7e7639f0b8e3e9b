"""AWS Signature Version 4 of requests without a body. Pure.

libcurl can sign too, but it percent-encodes the access key, and stores have users whose names are not of letters and
digits alone. Tests compare with botocore's signer.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from tonnage.source.endpoint_urls import host_header, quote, split_url

if TYPE_CHECKING:
    from collections.abc import Mapping

_EMPTY_BODY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""SHA-256 of no bytes."""


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """AWS credentials, or the token of a hub. ``expires_at`` is in seconds since the epoch; None if unknown."""

    access_key: str = ""
    secret_key: str = ""
    session_token: str = ""
    expires_at: float | None = None
    hub_token: str = ""

    def __repr__(self) -> str:
        return f"Credentials(expires_at={self.expires_at})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("expires_at", self.expires_at)]


def signed_headers(
    method: str, url: str, *, region: str, credentials: Credentials, headers: Mapping[str, str], now: float
) -> dict[str, str]:
    """Returns the headers of a signed request to S3: those given, the ones to add, and the signature.

    Args:
        method: The HTTP method; the request has no body.
        url: The URL, percent-encoded as by ``endpoint_urls.quote``, its query sorted by name.
        region: The region to sign for.
        credentials: The credentials.
        headers: More headers to sign, names in lower case.
        now: Seconds since the epoch.

    Raises:
        ValueError: The URL is not absolute.
    """
    parts = split_url(url)
    if parts is None:
        raise ValueError("only an absolute URL can be signed")
    timestamp, scope = _timestamp_and_scope(region, now)
    sent = {"host": host_header(parts), "x-amz-content-sha256": _EMPTY_BODY, "x-amz-date": timestamp, **headers}
    if credentials.session_token:
        sent["x-amz-security-token"] = credentials.session_token
    names = sorted(sent)
    query = sorted(item.partition("=")[::2] for item in parts.query.split("&") if item)
    canonical = "\n".join(
        [
            method,
            parts.path or "/",
            "&".join(f"{name}={value}" for name, value in query),
            *(f"{name}:{' '.join(sent[name].split())}" for name in names),
            "",
            ";".join(names),
            _EMPTY_BODY,
        ]
    )
    signature = _signature(canonical, credentials, timestamp, scope)
    sent["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={';'.join(names)}, "
        f"Signature={signature}"
    )
    return sent


def presigned_url(
    method: str, url: str, *, region: str, credentials: Credentials, requester_pays: bool, now: float, seconds: int
) -> str:
    """Returns a URL with which anyone can make one kind of request to one object for some time. It is a secret.

    Args:
        method: The HTTP method.
        url: The URL, percent-encoded as by ``endpoint_urls.quote``.
        region: The region to sign for.
        credentials: The credentials.
        requester_pays: Whether the requester agrees to pay.
        now: Seconds since the epoch.
        seconds: For how long it is valid.

    Raises:
        ValueError: The URL is not absolute.
    """
    parts = split_url(url)
    if parts is None:
        raise ValueError("only an absolute URL can be signed")
    timestamp, scope = _timestamp_and_scope(region, now)
    query = [item for item in parts.query.split("&") if item]
    added = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{credentials.access_key}/{scope}",
        "X-Amz-Date": timestamp,
        "X-Amz-Expires": str(seconds),
        "X-Amz-SignedHeaders": "host",
    }
    if credentials.session_token:
        added["X-Amz-Security-Token"] = credentials.session_token
    if requester_pays:
        added["x-amz-request-payer"] = "requester"
    query += [f"{name}={quote(value)}" for name, value in added.items()]
    text = "&".join("=".join(item.partition("=")[::2]) for item in sorted(query))
    canonical = "\n".join(
        [method, parts.path or "/", text, f"host:{host_header(parts)}", "", "host", "UNSIGNED-PAYLOAD"]
    )
    signature = _signature(canonical, credentials, timestamp, scope)
    return f"{parts.scheme}://{parts.host}{parts.path or '/'}?{text}&X-Amz-Signature={signature}"


def _timestamp_and_scope(region: str, now: float) -> tuple[str, str]:
    timestamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    return timestamp, f"{timestamp[:8]}/{region}/s3/aws4_request"


def _signature(canonical: str, credentials: Credentials, timestamp: str, scope: str) -> str:
    """Returns the signature of a canonical request."""
    import hashlib  # workers import little until they sign
    import hmac

    to_sign = f"AWS4-HMAC-SHA256\n{timestamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{credentials.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, to_sign.encode(), "sha256").hex()
