"""One connection of a worker, and the part that it fetches."""

from __future__ import annotations

import _socket  # not ``socket``, which is slow to import
from typing import TYPE_CHECKING

import pycurl

from tonnage.errors import Reason
from tonnage.source.request_failure import RequestFailure, Retry
from tonnage.source.request_target import configure_handle
from tonnage.source.responses import check_partial, parse_headers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tonnage.source.request_target import Credentials, RequestTarget
    from tonnage.transfer.body import Body
    from tonnage.transfer.protocol import Fetch

PEER_CONNECT_SECONDS = 3.0
PEER_STALL_SECONDS = 5
"""Peers are near, and there are others, so they get less time than a store."""
LOW_WATER_BYTES = 1 << 20
"""Bytes that must have arrived before a connection is readable. Over a network each ``select`` returned for a few
KiB otherwise, and the calls took more CPU time than the bytes."""
UNDELIVERED_BYTES = 64 << 10
"""At most so many bytes has libcurl taken from a socket and not passed on: a part of a TLS record, which has 16 KiB."""

_ABORT = -1
"""Return value of a callback that makes libcurl abort the transfer."""


def low_water_mark(remaining: int) -> int:
    """Returns how many bytes must have arrived for a connection to be readable (``SO_RCVLOWAT``).

    Args:
        remaining: Bytes of the response's body that libcurl has not passed on.
    """
    return max(1, min(LOW_WATER_BYTES, remaining - UNDELIVERED_BYTES))


class Connection:
    """A reusable curl handle and the state of one part.

    Args:
        new_body: Makes what receives the bodies of a handle's responses.
    """

    __slots__ = ("_lines", "_low_water_mark", "accepted", "body", "curl", "failure", "fetch", "status", "target")

    def __init__(self, new_body: Callable[[pycurl.Curl], Body]) -> None:
        self.curl = pycurl.Curl()
        self.body = new_body(self.curl)
        self._lines: list[bytes] = []
        self._low_water_mark = 1

    def start(
        self,
        fetch: Fetch,
        target: RequestTarget,
        credentials: Credentials | None,
        *,
        stall_seconds: int,
        crc: str = "",
    ) -> None:
        """Prepares the handle for a part. The caller adds it to its multi handle.

        Args:
            fetch: The part.
            target: Its object.
            credentials: The credentials to sign with; None leaves the request unsigned.
            stall_seconds: How long the transfer may stay below ``STALL_BYTES`` a second before it is aborted.
            crc: Name of a CRC to compute over all bytes, in addition to CRC-32; empty: none.

        Raises:
            OSError: An output file can't be opened.
        """
        self.fetch = fetch
        self.target = target = target if fetch.peer is None else fetch.peer
        self.status = 0
        self.accepted = False
        self.failure: RequestFailure | None = None
        self._lines.clear()
        curl = self.curl
        if fetch.peer is None:
            configure_handle(curl, target, credentials, stall_seconds=stall_seconds)
        else:
            stall = min(stall_seconds, PEER_STALL_SECONDS)
            configure_handle(curl, target, None, stall_seconds=stall, connect_seconds=PEER_CONNECT_SECONDS)
            curl.setopt(pycurl.TIMEOUT_MS, max(1, int(fetch.seconds * 1000)))
        curl.setopt(pycurl.RANGE, f"{fetch.start + fetch.shift}-{fetch.end + fetch.shift - 1}")
        curl.setopt(pycurl.HEADERFUNCTION, self._on_header)
        self.body.start(curl, fetch, crc)
        if fetch.fresh_connection:
            curl.setopt(pycurl.FRESH_CONNECT, 1)
            curl.setopt(pycurl.FORBID_REUSE, 1)

    def set_low_water_mark(self) -> None:
        """Makes the connection readable only when many bytes have arrived, or any if few remain.

        Call it between calls of libcurl, and wait no longer than a fraction of a second for a connection: libcurl reads
        from all of them after that, so that a slow one is not taken for a stalled one.
        """
        self._apply_low_water_mark(low_water_mark(self.fetch.end - self.body.at) if self.accepted else 1)

    def _apply_low_water_mark(self, mark: int) -> None:
        if mark == self._low_water_mark:
            return
        self._low_water_mark = mark
        descriptor = self.curl.getinfo(pycurl.ACTIVESOCKET)
        if descriptor < 0:  # closed
            return
        borrowed = _socket.socket(fileno=descriptor)
        try:
            borrowed.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVLOWAT, mark)
        finally:
            borrowed.detach()

    def finish(self, curl_code: int | None) -> RequestFailure | None:
        """Ends the part: flushes buffered bytes and returns the failure, if any. Call it before the handle is removed.

        After this call, all bytes of the part before ``written_end`` are in the file.

        Args:
            curl_code: libcurl's error code; None on success.
        """
        self._apply_low_water_mark(1)  # another handle may get the connection
        self.body.finish()
        if self.failure is None and self.body.too_long:
            self.failure = self._range_failure("was too long")
        if self.failure is None and not (self.accepted and curl_code is None):
            from tonnage.source.error_classification import classify  # not imported for requests that succeed

            self.status, headers = parse_headers(self._lines)
            self.failure = classify(
                curl_code=curl_code,
                status=self.status,
                headers=headers,
                body=self.body.other_body,
                label=self.target.label,
                server=self.target.server,
                pinned=True,
            )
        if self.failure is None and self.body.at != self.fetch.end:
            self.failure = self._range_failure(f"ended at byte {self.body.at}")
        return self.failure

    @property
    def written_end(self) -> int:
        """End of the bytes of this part that are in the file; the part's start if a write failed."""
        return self.fetch.start if self.body.write_error else self.body.at

    def _on_header(self, line: bytes) -> int | None:
        self._lines.append(line)
        if line.strip() or self.accepted:
            return None
        self._check_response()
        return None if self.failure is None else _ABORT

    def _check_response(self) -> None:
        """Checks that the response, whose headers have arrived, has the requested range of the pinned object."""
        self.status, headers = parse_headers(self._lines)
        if self.status not in {200, 206}:
            return
        start, end = self.fetch.start + self.fetch.shift, self.fetch.end + self.fetch.shift
        self.failure = check_partial(self.target, status=self.status, headers=headers, start=start, end=end)
        self.accepted = self.failure is None
        self.body.decide(accepted=self.accepted)

    def _range_failure(self, problem: str) -> RequestFailure:
        requested = f"bytes {self.fetch.start}-{self.fetch.end - 1}"
        message = f"{self.target.label}: the response to a request for {requested} {problem}."
        return RequestFailure(reason=Reason.RETRIES_EXHAUSTED, message=message, retry=Retry.BACKOFF)
