"""What one object's requests need, and how it goes onto a curl handle. Worker processes import this module.

It stays light on purpose: pycurl, msgspec and the error classes are all it needs.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pycurl

from tonnage._version import __version__

USER_AGENT = f"tonnage/{__version__}"
CONNECT_SECONDS = 10
"""How long a connection may take to come up, TLS included."""
STALL_SECONDS = 20
"""After how long below ``STALL_BYTES`` a second a transfer counts as stalled and is cut."""
STALL_BYTES = 1024
RECEIVE_BUFFER = 512 * 1024
"""Bytes of libcurl's receive buffer: against the default of 16 KiB it saves a third to a half of the CPU time."""
MAX_REDIRECTS = 5
SUPPRESS_CONNECT_HEADERS = 265
"""CURLOPT_SUPPRESS_CONNECT_HEADERS, which pycurl has no name for: a proxy's own answer is not the object's."""


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of an AWS-like identity. ``expires_at`` is in seconds since the epoch; None: they don't say."""

    access_key: str
    secret_key: str
    session_token: str = ""
    expires_at: float | None = None

    def __repr__(self) -> str:
        return f"Credentials(expires_at={self.expires_at})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("expires_at", self.expires_at)]


class RequestTarget(msgspec.Struct, frozen=True, kw_only=True):
    """One object of a pinned revision, as its requests name it. ``url`` may be a secret; ``label`` never is.

    Attributes:
        url: Where it is, percent-encoded, with ``versionId`` where the version is pinned by it.
        sigv4: What libcurl signs for, ``aws:amz:REGION:s3``; empty: requests are not signed.
        ca_bundle: A PEM file of trusted authorities; empty: those that libcurl was built with, if they are there.
        size: The object's size in bytes.
        etag: The strong ETag that every answer must have, without quotes; empty: none is checked.
        version_id: The version that every answer must name if it names one; empty: none is checked.
        precondition_header: A whole header line that makes the server refuse another revision; empty where there is
            none.
        label: What messages call the object: ``s3://bucket/key``, or the URL without its query.
    """

    url: str
    sigv4: str = ""
    ca_bundle: str = ""
    size: int = 0
    etag: str = ""
    version_id: str = ""
    precondition_header: str = ""
    label: str = ""

    def __repr__(self) -> str:
        return f"RequestTarget({self.label!r}, size={self.size})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("label", self.label), ("size", self.size)]


def configure_handle(
    curl: pycurl.Curl,
    target: RequestTarget,
    credentials: Credentials | None,
    *,
    connect_seconds: float = CONNECT_SECONDS,
    stall_seconds: int = STALL_SECONDS,
) -> None:
    """Makes ``curl`` ready for a GET of the whole object.

    The handle is reset first, so set RANGE and callbacks afterwards; its connections survive. A header callback may see
    several blocks of headers, one for each ``HTTP/`` line: only the last counts. Signed requests never follow a
    redirect; the others do, five times at most, and never from https to http.

    Args:
        curl: An easy handle that is not in a multi handle at the moment.
        target: The object. Its pin goes along as a header.
        credentials: Who asks. None leaves the request unsigned (anonymous).
        connect_seconds: How long a connection may take to come up.
        stall_seconds: How long a transfer may stay below ``STALL_BYTES`` a second.
    """
    curl.reset()
    # Bytes throughout: pycurl takes only ASCII as text, but a store may say anything in an ETag.
    curl.setopt(pycurl.URL, target.url.encode())
    headers = [target.precondition_header] if target.precondition_header else []
    if target.sigv4 and credentials is not None:
        curl.setopt(pycurl.AWS_SIGV4, target.sigv4)
        curl.setopt(pycurl.USERNAME, credentials.access_key.encode())
        curl.setopt(pycurl.PASSWORD, credentials.secret_key.encode())
        if credentials.session_token:
            headers.append(f"x-amz-security-token: {credentials.session_token}")
    else:
        # libcurl refuses this flag with its own signatures; a presigned path must stay as it was signed.
        curl.setopt(pycurl.PATH_AS_IS, 1)
        curl.setopt(pycurl.FOLLOWLOCATION, 1)
        curl.setopt(pycurl.MAXREDIRS, MAX_REDIRECTS)
        headers.append("Accept-Encoding: identity")
    secure_only = target.url[:6].lower() == "https:"
    curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    curl.setopt(pycurl.REDIR_PROTOCOLS, pycurl.PROTO_HTTPS | (0 if secure_only else pycurl.PROTO_HTTP))
    curl.setopt(pycurl.HTTPHEADER, [header.encode("latin-1", "replace") for header in headers])
    curl.setopt(pycurl.USERAGENT, USER_AGENT)
    curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    curl.setopt(pycurl.HTTP09_ALLOWED, 0)
    curl.setopt(SUPPRESS_CONNECT_HEADERS, 1)
    curl.setopt(pycurl.NOSIGNAL, 1)
    curl.setopt(pycurl.CONNECTTIMEOUT_MS, int(connect_seconds * 1000))
    curl.setopt(pycurl.LOW_SPEED_LIMIT, STALL_BYTES)
    curl.setopt(pycurl.LOW_SPEED_TIME, stall_seconds)
    curl.setopt(pycurl.BUFFERSIZE, RECEIVE_BUFFER)
    curl.setopt(pycurl.TCP_KEEPALIVE, 1)
    if target.ca_bundle:
        curl.setopt(pycurl.CAINFO, os.fsencode(target.ca_bundle))
