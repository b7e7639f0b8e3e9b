"""Decides who may read which entry of this node.

A caller needs two things: a ticket of the controller for the entry, and access to the objects that the entry comes
from. It proves the second with one URL for each place: of S3, a presigned HEAD, which this peer sends to that object
and nowhere else; of HTTP and hubs, an object's URL without credentials, which must answer to all. It gets a pass.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pycurl

from tonnage.cache.peer_ranges import EntrySource, read_entry_sources
from tonnage.contract.peers import (
    GRANT_SECONDS,
    MAX_PROOFS,
    AccessAnswer,
    AccessRequest,
    Grant,
    GrantRejected,
    Purpose,
    sign_grant,
    verify_grant,
)
from tonnage.contract.plan import DECODE_ERRORS
from tonnage.peer_server.proofs import is_url_of
from tonnage.source.request_target import RequestTarget, configure_handle, is_local_address
from tonnage.source.responses import parse_headers, quoted_etag

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tonnage.peer_server.settings import PeerSettings

MAX_REMEMBERED = 10_000
CONNECT_SECONDS = 3.0
PROOF_SECONDS = 8.0
_MAX_HEADER_BYTES = 64 << 10


class Verdict(NamedTuple):
    """HTTP status and answer."""

    status: int
    answer: AccessAnswer


class ProofResult(NamedTuple):
    """How a store answered a proof. ``reached`` is False if it did not answer."""

    accepted: bool
    reached: bool
    why: str = ""


class AccessService:
    """Checks tickets, proofs and passes. Thread-safe.

    Args:
        settings: The server's settings.
        clock: Returns the Unix time.
        monotonic: Returns the seconds since any moment, whatever happens to the other clock.
    """

    def __init__(
        self,
        settings: PeerSettings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._proven: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()
        """When each caller has proven its access to an entry, by both clocks."""

    def authorize(self, token: str, entry: str) -> int:
        """Returns the HTTP status of a request for an entry: 204 with a valid pass for it, else 401 or 403."""
        try:
            grant = verify_grant(token, Purpose.PASS, self._settings.ticket_keys(), now=self._clock())
        except GrantRejected:
            return 401
        return 204 if grant.path == entry else 403

    def give_pass(self, ticket: str, body: bytes) -> Verdict:
        """Answers a caller that asks for a pass."""
        keys = self._settings.ticket_keys()
        try:
            grant = verify_grant(ticket, Purpose.TICKET, keys, now=self._clock())
        except GrantRejected as error:
            return _refusal(401, str(error))
        try:
            request = msgspec.json.decode(body, type=AccessRequest)
        except DECODE_ERRORS:
            return _refusal(400, "This is no request for access.")
        root = self._settings.media.get(grant.medium)
        sources = None if root is None else read_entry_sources(root / grant.key)
        if not sources:
            return _refusal(404, "This node has no such entry.")
        proven = self._remembered(grant)
        if request.proofs or proven is None:
            verdict = self._check(sources, request.proofs)
            if verdict is None:
                proven = self._remember(grant)
            elif verdict.status != 503 or proven is None:
                return verdict
        token = Grant(medium=grant.medium, key=grant.key, caller=grant.caller, expires=int(proven + GRANT_SECONDS))
        return Verdict(200, AccessAnswer(token=sign_grant(token, Purpose.PASS, keys[0]), expires=token.expires))

    def _remembered(self, grant: Grant) -> float | None:
        """Returns when the caller proved its access to the entry, unless that is too long ago.

        It is the time as the clock is now: it may have been set since.
        """
        with self._lock:
            proven = self._proven.get((grant.caller, grant.path))
        if proven is None or proven[1] + GRANT_SECONDS <= self._monotonic():
            return None
        moved = (self._clock() - proven[0]) - (self._monotonic() - proven[1])
        return proven[0] if abs(moved) < 1.0 else proven[0] + moved

    def _remember(self, grant: Grant) -> float:
        now = self._clock()
        with self._lock:
            self._proven[grant.caller, grant.path] = now, self._monotonic()
            self._proven.move_to_end((grant.caller, grant.path))
            while len(self._proven) > MAX_REMEMBERED:
                self._proven.popitem(last=False)
        return now

    def _check(self, sources: Sequence[EntrySource], proofs: Sequence[str]) -> Verdict | None:
        """Checks a proof for each place of an entry; returns a refusal unless all are good."""
        places = {source.place for source in sources}
        if len(places) > MAX_PROOFS:
            return _refusal(403, f"The entry comes from more than {MAX_PROOFS} places.")
        chosen: dict[str, tuple[str, EntrySource]] = {}
        for url in proofs:
            for source in sources:
                if source.place not in chosen and is_url_of(url, source):
                    chosen[source.place] = url, source
                    break
        if not proofs:
            return _refusal(
                503, f"Access to the objects was not proven within the last {GRANT_SECONDS / 60:.0f} minutes."
            )
        if set(chosen) != places:
            return _refusal(403, "The proofs are not for the objects that this node's entry comes from.")
        for url, source in chosen.values():
            result = send_proof(
                url, source, ca_bundle=self._settings.ca_bundle, local_stores=self._settings.local_stores
            )
            if not result.accepted:
                return _refusal(403 if result.reached else 503, result.why)
        return None


def send_proof(url: str, source: EntrySource, *, ca_bundle: str, local_stores: bool) -> ProofResult:
    """Asks an object's store whether a URL may be read, and whether it is that object.

    Args:
        url: Its URL; may be a secret.
        source: The object.
        ca_bundle: Trusted CAs; empty: libcurl's.
        local_stores: Whether the store, or the proxy to it, may have a loopback or link-local address. A loader writes
            down where an entry comes from, and at such addresses this node's own services and the cloud's answer.
    """
    refused: list[str] = []

    def open_socket(_purpose: int, address: Any) -> Any:  # noqa: ANN401  # pycurl has no types
        host = str(address.addr[0]) if isinstance(address.addr, tuple) else ""
        if not local_stores and is_local_address(host):
            refused.append(host)
            return pycurl.SOCKET_BAD
        return socket.socket(address.family, address.socktype, address.protocol)

    lines: list[bytes] = []
    size = 0

    def on_header(line: bytes) -> int | None:
        nonlocal size
        size += len(line)
        lines.append(line)
        return -1 if size > _MAX_HEADER_BYTES else None

    curl = pycurl.Curl()
    try:
        target = RequestTarget(url=url, ca_bundle=ca_bundle)
        configure_handle(curl, target, None, method="HEAD", connect_seconds=CONNECT_SECONDS, follow=False)
        curl.setopt(pycurl.TIMEOUT_MS, int(PROOF_SECONDS * 1000))
        curl.setopt(pycurl.HEADERFUNCTION, on_header)
        curl.setopt(pycurl.OPENSOCKETFUNCTION, open_socket)
        curl.perform()
    except pycurl.error as error:
        if refused:
            why = f"The store's address {refused[0]} is one of the peer's own node, where no store is asked."
            return ProofResult(accepted=False, reached=True, why=why)
        return ProofResult(
            accepted=False, reached=False, why=f"The store could not be asked (libcurl's error {error.args[0]})."
        )
    finally:
        curl.close()
    status, headers = parse_headers(lines)
    return _judge(status, headers, source)


def _judge(status: int, headers: dict[str, str], source: EntrySource) -> ProofResult:
    if status == 429 or status >= 500 or not status:
        return ProofResult(accepted=False, reached=False, why=f"The store answered the proof with {status}.")
    if source.place.startswith("hf+") and status in {302, 307} and headers.get("x-repo-commit") == source.version_id:
        return ProofResult(accepted=True, reached=True)  # to a CDN, which a hub does only for those who may read it
    if status != 200:
        return ProofResult(accepted=False, reached=True, why=f"The store answered the proof with {status}.")
    etag = headers.get("etag", "")
    if source.etag and not source.etag.startswith("last-modified=") and not source.place.startswith("hf+"):
        if etag.removeprefix("W/") != quoted_etag(source.etag).removeprefix("W/"):
            return ProofResult(accepted=False, reached=True, why="The store has another version of the object.")
    elif headers.get("content-length", "") not in {"", str(source.size)}:
        return ProofResult(accepted=False, reached=True, why="The store has another version of the object.")
    return ProofResult(accepted=True, reached=True)


def _refusal(status: int, message: str) -> Verdict:
    return Verdict(status, AccessAnswer(message=message))
