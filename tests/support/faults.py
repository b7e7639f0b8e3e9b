"""What the faulty server is asked, and the ways in which it may answer wrongly."""

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
    """One request as it arrived. ``number`` counts from 0 over the server's life; header names are in lower case."""

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
        """First and last byte asked for, both inclusive; None without a Range header."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        return (int(match[1]), int(match[2]) if match[2] else None) if match else None


@dataclass(frozen=True)
class Fault:
    """One way to answer wrongly; members combine. Offsets ``*_after`` count bytes of this answer's body.

    Attributes:
        status: Answers with this status and ``body`` instead of the object.
        reason: The status line's text.
        body: With ``status``.
        headers: Added to the answer, replacing those of the same name; a value of None drops the header.
        reset_after: Resets the connection (RST) after so many bytes of the body.
        close_after: Ends the connection (FIN) after so many bytes, with the Content-Length of the whole.
        stall_after: Sends nothing more after so many bytes, until the server is released.
        stall_before: Sends nothing at all, until the server is released.
        drop_connection: Closes the connection without an answer.
        extra: Sent after the body; with ``announce_extra`` counted in Content-Length.
        ignore_range: Answers 200 with the whole object.
        shift: Answers a range that begins and ends so many bytes later, and says so in Content-Range.
        total_offset: Added to the total in Content-Range.
        shorten: Answers a range so many bytes shorter, consistently.
        etag: Another ETag (with its quotes); If-Match is checked against it.
        data: Another object's bytes.
        flip: Flips the lowest bit of the byte at this offset of the object.
        rate: Sends about so many bytes a second.
        chunked: Transfer-Encoding chunked, without Content-Length.
        close: Says and does ``Connection: close``.
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
    """503 SlowDown with a Retry-After of seconds or an HTTP date."""
    return Fault(status=503, reason="Slow Down", body=SLOW_DOWN, headers={"Retry-After": retry_after})


def expired_token() -> Fault:
    """403 ExpiredToken, as S3 says it."""
    return Fault(status=403, reason="Forbidden", body=EXPIRED_TOKEN, headers={"Content-Type": "application/xml"})


@dataclass
class Rule:
    """When a fault happens: for requests that match, from the ``skip``-th matching one on, at most ``times`` times."""

    fault: Fault
    when: Callable[[Request], bool] | None = None
    method: str | None = None
    key: str | None = None
    skip: int = 0
    times: int | None = None
    matched: int = 0
    applied: int = 0

    def consume(self, request: Request) -> bool:
        """Whether the fault applies to this request; counts it."""
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
    """One version of an object. ``data`` is anything with the buffer protocol, so a file may be mapped."""

    data: Any
    etag: str
    last_modified: str
    version_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(memoryview(self.data).cast("B")) if len(self.data) else 0
