"""Small requests to peers, all at the same time, each with a short timeout."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import pycurl

from tonnage.source.request_target import configure_handle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.source.request_target import RequestTarget

CONNECT_SECONDS = 2.0
REQUEST_SECONDS = 5.0
ACCESS_SECONDS = 15.0
"""A peer asks the store about a proof before it answers."""
_SELECT_SECONDS = 0.2


class PeerRequest(NamedTuple):
    """A request. With a ``body`` it is a POST. Of the answer, at most ``limit`` bytes are taken."""

    target: RequestTarget
    limit: int
    body: bytes | None = None


class PeerResponse(NamedTuple):
    """Its answer. ``status`` is 0 if there was none; ``problem`` is the cause."""

    status: int
    body: bytes
    problem: str = ""


def request_all(requests: Sequence[PeerRequest], *, seconds: float = REQUEST_SECONDS) -> list[PeerResponse]:
    """Sends requests to peers, and returns their answers in the same order, after ``seconds`` at the latest."""
    multi = pycurl.CurlMulti()
    exchanges = [_Exchange(request, seconds) for request in requests]
    by_handle = {exchange.curl: exchange for exchange in exchanges}
    for exchange in exchanges:
        multi.add_handle(exchange.curl)
    left = len(exchanges)
    deadline = time.monotonic() + seconds + 1.0
    while left and time.monotonic() < deadline:
        while multi.perform()[0] == pycurl.E_CALL_MULTI_PERFORM:
            pass
        queued = 1
        while queued:
            queued, succeeded, failed = multi.info_read()
            for curl in succeeded:
                by_handle[curl].end(0)
            for curl, code, _ in failed:
                by_handle[curl].end(code)
            left -= len(succeeded) + len(failed)
        if left:
            multi.select(_SELECT_SECONDS)
    for exchange in exchanges:
        multi.remove_handle(exchange.curl)
        exchange.curl.close()
    multi.close()
    return [exchange.response for exchange in exchanges]


class _Exchange:
    """One request and what has arrived of its answer."""

    def __init__(self, request: PeerRequest, seconds: float) -> None:
        self._limit = request.limit
        self._body = bytearray()
        self.response = PeerResponse(0, b"", "no answer in time")
        self.curl = pycurl.Curl()
        configure_handle(self.curl, request.target, None, connect_seconds=CONNECT_SECONDS)
        self.curl.setopt(pycurl.TIMEOUT_MS, int(seconds * 1000))
        self.curl.setopt(pycurl.WRITEFUNCTION, self._on_body)
        if request.body is not None:
            self.curl.setopt(pycurl.POSTFIELDS, request.body)

    def _on_body(self, data: bytes) -> int | None:
        self._body += data
        return -1 if len(self._body) > self._limit else None

    def end(self, code: int) -> None:
        """The exchange has ended, with an error of libcurl or 0."""
        status = self.curl.getinfo(pycurl.RESPONSE_CODE)
        if code:
            self.response = PeerResponse(0, b"", self.curl.errstr() or f"libcurl's error {code}")
        else:
            self.response = PeerResponse(status, bytes(self._body))
