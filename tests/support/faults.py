"""Requests that the faulty server recorded, and the faults that it can inject."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EXPIRED_TOKEN = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass(frozen=True)
class Request:
    """A recorded request. ``number`` counts from 0 over the server's lifetime; header names are in lower case."""

    number: int
    connection: int
    method: str
    raw_path: str
    raw_query: str
    headers: Mapping[str, str]
    time: float
    body: bytes = b""

    @property
    def key(self) -> str:
        """The path without its leading slash, decoded: ``bucket/key`` for path-style S3."""
        return urllib.parse.unquote(self.raw_path.removeprefix("/"))

    @property
    def query(self) -> dict[str, str]:
        return dict(urllib.parse.parse_qsl(self.raw_query, keep_blank_values=True))

    @property
    def range(self) -> tuple[int, int | None] | None:
        """First and last byte requested, both inclusive; None without a Range header."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        return (int(match[1]), int(match[2]) if match[2] else None) if match else None


@dataclass(frozen=True)
class Fault:
    """A fault of a response; members combine. Offsets ``*_after`` count bytes of this response's body.

    Attributes:
        status: Responds with this status and ``body`` instead of the object.
        reason: The status line's text.
        body: With ``status``.
        headers: Added to the response, replacing those of the same name; None removes the header.
        reset_after: Resets the connection (RST) after this many bytes of the body.
        close_after: Closes the connection (FIN) after this many bytes; Content-Length is that of the whole body.
        stall_after: Stalls after this many bytes, until ``release_stalled``.
        stall_before: Stalls before the response, until ``release_stalled``.
        drop_connection: Closes the connection without a response.
        extra: Sent after the body; with ``announce_extra`` counted in Content-Length.
        ignore_range: Responds with 200 and the whole object.
        shift: Sends a range that begins and ends this many bytes later, with the matching Content-Range.
        total_offset: Added to the total in Content-Range.
        shorten: Sends a range that is this many bytes shorter, with matching headers.
        etag: ETag (with quotes) in place of the object's; If-Match is compared with it.
        data: Sent in place of the object's bytes.
        flip: Flips the lowest bit of the byte at this offset of the object.
        rate: Bytes per second, approximately.
        chunked: Transfer-Encoding chunked, without Content-Length.
        close: Sends ``Connection: close``, and closes the connection after the response.
    """

    status: int | None = None
    reason: str = "Fault"
    body: bytes = b""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    reset_after: int | None = None
    close_after: int | None = None
    stall_after: int | None = None
    stall_before: bool = False
    drop_connection: bool = False
    extra: bytes = b""
    announce_extra: bool = False
    ignore_range: bool = False
    shift: int = 0
    total_offset: int = 0
    shorten: int = 0
    etag: str | None = None
    data: bytes | None = None
    flip: int | None = None
    rate: float | None = None
    chunked: bool = False
    close: bool = False


NO_FAULT = Fault()


def slow_down(*, retry_after: str = "0") -> Fault:
    """Returns 503 SlowDown; ``retry_after`` is in seconds or an HTTP date."""
    return Fault(status=503, reason="Slow Down", body=SLOW_DOWN, headers={"Retry-After": retry_after})


def expired_token() -> Fault:
    """Returns 403 ExpiredToken with the body that S3 sends."""
    return Fault(status=403, reason="Forbidden", body=EXPIRED_TOKEN, headers={"Content-Type": "application/xml"})


@dataclass
class Rule:
    """When a fault is injected: into matching requests, after the first ``skip`` of them, at most ``times`` times."""

    fault: Fault
    when: Callable[[Request], bool] | None = None
    method: str | None = None
    key: str | None = None
    skip: int = 0
    times: int | None = None
    matched: int = 0
    applied: int = 0

    def consume(self, request: Request) -> bool:
        """Returns whether the fault applies to this request, and counts the request."""
        if self.method is not None and request.method != self.method:
            return False
        if self.key is not None and request.key != self.key:
            return False
        if self.when is not None and not self.when(request):
            return False
        self.matched += 1
        if self.matched <= self.skip or (self.times is not None and self.applied >= self.times):
            return False
        self.applied += 1
        return True


@dataclass(frozen=True)
class StoredObject:
    """One version of an object. ``data`` has the buffer protocol, so it may be a mapped file."""

    data: Any
    etag: str
    last_modified: str
    version_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(memoryview(self.data).cast("B")) if len(self.data) else 0
