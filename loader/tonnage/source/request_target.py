"""The data for requests of one object, and the configuration of a curl handle from it.

Worker processes import this module, so its imports are few: pycurl and msgspec.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pycurl

from tonnage._version import __version__
from tonnage.source.endpoint_urls import host_and_port, split_url
from tonnage.source.sigv4 import Credentials, signed_headers

__all__ = ["Credentials", "RequestTarget", "configure_handle"]

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from ipaddress import IPv4Address, IPv6Address

USER_AGENT = f"tonnage/{__version__}"
CONNECT_SECONDS = 10
"""Timeout for connecting, including TLS."""
STALL_SECONDS = 20
"""A transfer that is slower than ``STALL_BYTES`` a second for this long is stalled and is aborted."""
STALL_BYTES = 1024
RECEIVE_BUFFER = 512 * 1024
"""Size of libcurl's receive buffer. It takes a third to a half less CPU time than the default of 16 KiB."""
MAX_REDIRECTS = 5
METADATA_ADDRESSES = frozenset({"fd00:ec2::254", "100.100.100.200", "168.63.129.16"})
"""Metadata services that are not at a link-local address: of EC2 by IPv6, Alibaba Cloud and Azure."""
HTTPAUTH_BEARER = 1 << 6
"""CURLAUTH_BEARER, which pycurl does not define."""
SUPPRESS_CONNECT_HEADERS = 265
"""CURLOPT_SUPPRESS_CONNECT_HEADERS, which pycurl does not define: a proxy's headers are not the object's."""


class RequestTarget(msgspec.Struct, frozen=True, kw_only=True):
    """One object of a pinned revision and how to request it. ``url`` may be a secret; ``label`` never is.

    Attributes:
        url: The percent-encoded URL, with ``versionId`` if the object is pinned by version.
        region: The region to sign for; empty: requests are not signed.
        requester_pays: Whether the requester agrees to pay for requests and transfer.
        ca_bundle: A PEM file of trusted CA certificates or a directory of them; empty: libcurl's default.
        size: The object's size in bytes.
        etag: The ETag that a response must have if it has one: a strong one without quotes, or a weak one with ``W/``
            and quotes; empty: not checked.
        last_modified: The date that a response must have if it has one; empty: not checked.
        version_id: The version that a response must have if it has one; empty: not checked.
        precondition_header: A header line with which the server rejects other revisions; empty if there is none.
        inner_redirects: Whether a server with a public address may redirect to an inner one.
        hub_token: Whether the credentials' token of a hub is sent, to this URL's server only.
        redirected_from: Address of the server that redirected here; empty: none did.
        label: The object's name in messages: ``s3://bucket/key``, or the URL without its query.
        peer_address: IP address and port of the peer that is connected to in place of the URL's host; empty: none.
        peer_token: What the peer is shown as a bearer token.
        peer_ca: The certificates that the peer may show, in PEM.
    """

    url: str
    region: str = ""
    requester_pays: bool = False
    ca_bundle: str = ""
    size: int = 0
    etag: str = ""
    last_modified: str = ""
    version_id: str = ""
    precondition_header: str = ""
    inner_redirects: bool = False
    hub_token: bool = False
    redirected_from: str = ""
    label: str = ""
    peer_address: str = ""
    peer_token: str = ""
    peer_ca: bytes = b""

    @property
    def takes_credentials(self) -> bool:
        """Whether requests are signed, or have a token."""
        return bool(self.region) or self.hub_token

    @property
    def server(self) -> str:
        """Host and port of the server, for messages."""
        parts = split_url(self.url)
        return "" if parts is None else host_and_port(parts)

    def __repr__(self) -> str:
        return f"RequestTarget({self.label!r}, size={self.size})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("label", self.label), ("size", self.size)]


def configure_handle(
    curl: pycurl.Curl,
    target: RequestTarget,
    credentials: Credentials | None,
    *,
    method: str = "GET",
    connect_seconds: float = CONNECT_SECONDS,
    stall_seconds: int = STALL_SECONDS,
    amz_headers: Iterable[tuple[str, str]] = (),
    follow: bool = True,
) -> None:
    """Configures ``curl`` for a GET or HEAD of the whole object.

    The handle is reset first, so set RANGE and callbacks afterwards; its connections stay open. A header callback may
    get several blocks of headers, each with an ``HTTP/`` line; only the last block is the response's. Signed requests
    never follow a redirect; others follow up to ``MAX_REDIRECTS``, but never from https to http, and from a public to
    an inner address only if the target allows it (``CURLE_ABORTED_BY_CALLBACK`` otherwise).

    Args:
        curl: An easy handle that is not in a multi handle.
        target: The object. Its pin is sent as a precondition.
        credentials: The credentials to sign with; None leaves the request unsigned.
        method: ``GET`` or ``HEAD``.
        connect_seconds: Timeout for connecting, including TLS.
        stall_seconds: How long a transfer may stay below ``STALL_BYTES`` a second.
        amz_headers: Names, which begin with x-amz-, and values of headers to send, signed if the request is.
        follow: Whether an unsigned request follows redirects.
    """
    curl.reset()
    # Bytes, because pycurl accepts only ASCII strings, and an ETag may have other characters.
    curl.setopt(pycurl.URL, target.url.encode())
    curl.setopt(pycurl.PATH_AS_IS, 1)  # the path is signed, or was when the URL was presigned
    if method == "HEAD":
        curl.setopt(pycurl.NOBODY, 1)
    headers = ["Accept-Encoding: identity"]
    if target.precondition_header:
        headers.append(target.precondition_header)
    sent = dict(amz_headers) | ({"x-amz-request-payer": "requester"} if target.requester_pays else {})
    if target.region and credentials is not None:
        sent = signed_headers(
            method, target.url, region=target.region, credentials=credentials, headers=sent, now=time.time()
        )
    else:
        curl.setopt(pycurl.FOLLOWLOCATION, int(follow))
        curl.setopt(pycurl.MAXREDIRS, MAX_REDIRECTS)
        if not target.inner_redirects:
            curl.setopt(pycurl.PREREQFUNCTION, _RedirectGuard(target.redirected_from))
        if target.hub_token and credentials is not None and credentials.hub_token:
            # Not as a header of our own: libcurl sends it to no server but this one.
            curl.setopt(pycurl.HTTPAUTH, HTTPAUTH_BEARER)
            curl.setopt(pycurl.XOAUTH2_BEARER, credentials.hub_token)
    headers += [f"{name}: {value}" for name, value in sent.items()]
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
    if target.peer_address:
        _configure_peer(curl, target)
    elif target.ca_bundle:
        is_directory = os.path.isdir(target.ca_bundle)  # noqa: PTH112  # once per request, and a string is enough
        curl.setopt(pycurl.CAPATH if is_directory else pycurl.CAINFO, os.fsencode(target.ca_bundle))


def _configure_peer(curl: pycurl.Curl, target: RequestTarget) -> None:
    """Connects to a peer's address, by no proxy; its certificate has the name in the URL. It never redirects."""
    host = host_and_port(split) if (split := split_url(target.url)) is not None else ""
    curl.setopt(pycurl.CONNECT_TO, [f"{host}:{target.peer_address}"])
    curl.setopt(pycurl.NOPROXY, "*")
    curl.setopt(pycurl.FOLLOWLOCATION, 0)
    curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTPS)
    curl.setopt(pycurl.HTTPAUTH, HTTPAUTH_BEARER)
    curl.setopt(pycurl.XOAUTH2_BEARER, target.peer_token)
    if target.peer_ca:
        curl.setopt(pycurl.CAINFO_BLOB, target.peer_ca)


def was_connected(curl: pycurl.Curl) -> bool:
    """Returns whether an ended transfer had a connection, new or reused, with TLS if the URL is https."""
    if curl.getinfo(pycurl.LOCAL_PORT) <= 0:
        return False
    is_new = bool(curl.getinfo(pycurl.CONNECT_TIME))
    no_tls = curl.getinfo(pycurl.EFFECTIVE_URL)[:6].lower() == "https:" and not curl.getinfo(pycurl.APPCONNECT_TIME)
    return not (is_new and no_tls)


def is_resolving(curl: pycurl.Curl) -> bool:
    """Returns whether a transfer waits for the address of its host, or ended while it did."""
    return curl.getinfo(pycurl.LOCAL_PORT) <= 0 and not curl.getinfo(pycurl.NAMELOOKUP_TIME)


def allows_inner_redirects(environment: Mapping[str, str]) -> bool:
    """Returns whether servers with public addresses may redirect unsigned requests to inner ones."""
    return environment.get("TONNAGE_INNER_REDIRECTS", "") == "allow"


class _RedirectGuard:
    """Refuses a transfer's redirect from a public to an inner address. libcurl calls it before each request."""

    __slots__ = ("_first",)

    def __init__(self, first: str = "") -> None:
        self._first = first

    def __call__(self, address: str, _local_address: str, _port: int, _local_port: int) -> int:
        self._first = self._first or address
        refused = self._first != address and is_inner_address(address) and not is_inner_address(self._first)
        result: int = pycurl.PREREQFUNC_ABORT if refused else pycurl.PREREQFUNC_OK
        return result


def is_inner_address(text: str) -> bool:
    """Returns whether an IP address is not public: loopback, private, link-local, shared or unknown."""
    address = _ip_address(text)
    return address is None or not address.is_global


def is_local_address(text: str) -> bool:
    """Returns whether an IP address is of this machine, its link or its cloud's metadata service, or is unknown."""
    address = _ip_address(text)
    if address is None or str(address) in METADATA_ADDRESSES:
        return True
    return address.is_loopback or address.is_link_local or address.is_unspecified


def _ip_address(text: str) -> IPv4Address | IPv6Address | None:
    import ipaddress  # only for redirects and proofs

    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
