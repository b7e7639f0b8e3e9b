"""Small requests to peers, all at the same time, each with a short timeout, over connections that stay open."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import pycurl

from tonnage.source.request_target import configure_handle

if TYPE_CHECKING:
    from tonnage.source.request_target import RequestTarget

CONNECT_SECONDS = 2.0
REQUEST_SECONDS = 5.0
ACCESS_SECONDS = 15.0
"""A peer asks the store about a proof before it answers."""
MAX_CONNECTIONS = 32
"""Connections that are kept open."""
_SELECT_SECONDS = 0.2
_PAUSE_SECONDS = 0.01


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


class Tag(NamedTuple):
    """What is asked, and of which node."""

    what: str
    node: str


class PeerClient:
    """Sends requests to peers, all at the same time. For one thread.

    Each request has a tag, by which its answer is recognized.
    """

    def __init__(self) -> None:
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, MAX_CONNECTIONS)
        self._exchanges: dict[pycurl.Curl, tuple[Tag, _Exchange]] = {}

    @property
    def tags(self) -> list[Tag]:
        """The requests that have no answer yet."""
        return [tag for tag, _ in self._exchanges.values()]

    def send(self, tag: Tag, request: PeerRequest, *, seconds: float = REQUEST_SECONDS) -> None:
        """Sends a request, whose answer takes ``seconds`` at the longest."""
        exchange = _Exchange(request, seconds)
        self._exchanges[exchange.curl] = tag, exchange
        self._multi.add_handle(exchange.curl)

    def poll(self, seconds: float) -> list[tuple[Tag, PeerResponse]]:
        """Returns the answers that there are, after ``seconds`` at the latest, if any request has none yet."""
        answers = self._perform()
        if self._exchanges and not answers:
            if self._multi.select(seconds) < 0:
                time.sleep(_PAUSE_SECONDS)  # libcurl has no socket to wait for yet
            answers = self._perform()
        return answers

    def _perform(self) -> list[tuple[Tag, PeerResponse]]:
        while self._multi.perform()[0] == pycurl.E_CALL_MULTI_PERFORM:
            pass
        ended: list[tuple[pycurl.Curl, int]] = []
        queued = 1
        while queued:
            queued, succeeded, failed = self._multi.info_read()
            ended += [(curl, 0) for curl in succeeded] + [(curl, code) for curl, code, _ in failed]
        answers = []
        for curl, code in ended:
            tag, exchange = self._exchanges.pop(curl)
            answers.append((tag, exchange.end(code)))
            self._multi.remove_handle(curl)
            curl.close()
        return answers

    def close(self) -> None:
        """Ends all requests, and closes the connections."""
        for curl in self._exchanges:
            self._multi.remove_handle(curl)
            curl.close()
        self._exchanges.clear()
        self._multi.close()


def request_one(request: PeerRequest, *, seconds: float) -> PeerResponse:
    """Sends a request, and returns its answer, after ``seconds`` at the latest."""
    client = PeerClient()
    try:
        client.send(Tag("", ""), request, seconds=seconds)
        while not (answers := client.poll(_SELECT_SECONDS)):
            pass
    finally:
        client.close()
    return answers[0][1]


class _Exchange:
    """One request and what has arrived of its answer."""

    def __init__(self, request: PeerRequest, seconds: float) -> None:
        self._limit = request.limit
        self._body = bytearray()
        self.curl = pycurl.Curl()
        configure_handle(self.curl, request.target, None, connect_seconds=CONNECT_SECONDS)
        self.curl.setopt(pycurl.TIMEOUT_MS, int(seconds * 1000))
        self.curl.setopt(pycurl.WRITEFUNCTION, self._on_body)
        if request.body is not None:
            self.curl.setopt(pycurl.POSTFIELDS, request.body)

    def _on_body(self, data: bytes) -> int | None:
        self._body += data
        return -1 if len(self._body) > self._limit else None

    def end(self, code: int) -> PeerResponse:
        """Returns the answer of an exchange that has ended, with an error of libcurl or 0."""
        if code:
            return PeerResponse(0, b"", self.curl.errstr() or f"libcurl's error {code}")
        return PeerResponse(self.curl.getinfo(pycurl.RESPONSE_CODE), bytes(self._body))
