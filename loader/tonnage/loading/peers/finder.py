"""Finds a load's peers: asks the controller who they are, gets a pass, and reads again and again what they have.

Two threads do it beside the transfer, which takes the newest picture of the peers whenever it looks. Whatever fails
here costs the load nothing but the peers: it goes on with its source.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from tonnage.cache.peer_ranges import (
    MAX_RANGES_BYTES,
    FileRanges,
    PeerRanges,
    decode_ranges,
    ranges_of_manifest,
    write_ranges,
)
from tonnage.contract import Report, ReportKind, encode_report
from tonnage.contract.peers import (
    AWAIT_HEADERS,
    GRANT_SECONDS,
    NO_PLACE,
    READ_HEADERS,
    AccessAnswer,
    AccessRequest,
    Grant,
    Peer,
    PeersAnswer,
    Purpose,
    decode_peers_answer,
    read_grant,
)
from tonnage.errors import CacheDamaged, CacheNotWritable, InsufficientSpace, InvalidPlan
from tonnage.loading.peers.client import ACCESS_SECONDS, PeerClient, PeerRequest, PeerResponse, Tag, request_one
from tonnage.loading.peers.headers_exchange import HeadersOfPeers, may_have_headers
from tonnage.loading.peers.headers_file import MAX_BYTES, headers_digest
from tonnage.reporting.client import ReportClient
from tonnage.reporting.reporter import report_endpoint
from tonnage.source.request_target import RequestTarget
from tonnage.transfer.peer_view import PeersSnapshot, PeerView
from tonnage.transfer.source_share import SourceShare

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tonnage.cache.entry import Entry
    from tonnage.contract import Plan
    from tonnage.contract.plan import PeerAccess, Reporting
    from tonnage.planning.segments import ByteRange
    from tonnage.transfer.source_headers import HeaderCollector

STATE_SECONDS = 0.3
"""Seconds between two looks at a peer that is loading."""
COMPLETE_SECONDS = 30.0
"""The same of one that has everything."""
MISSING_SECONDS = 0.5
"""The same of one that has nothing of the entry yet."""
FAILED_SECONDS = 1.0
"""The same of one that did not answer; the delay doubles with each failure, up to ``COMPLETE_SECONDS``."""
MAX_FAILURES = 3
"""Looks at a peer that failed in a row, after which what it had counts no more."""
FIRST_ANSWER_SECONDS = 3.0
"""For how long a load waits for its peers before it begins without."""
HEADERS_SECONDS = 30.0
REPORT_SECONDS = 3.0
SOON_SECONDS = 1.0
"""After this time the controller is asked again; then after twice as long, and so on, up to the answer's interval."""
RETRY_SECONDS = 5.0
RENEW_SECONDS = 240.0
"""A pass is renewed when it is valid for no longer than this."""
REFUSED_SECONDS = 30.0
"""A peer that has refused a pass is asked for one again after this time."""
NONE_SECONDS = 0.4
"""While no peer has anything of the entry, they are asked for a pass again after this time."""
_TICK_SECONDS = 0.1
_FIRST_TICK_SECONDS = 0.01
_ACCESS = "access"
_RANGES = "ranges"
_MANIFEST = "manifest"
_HEADERS = "headers"
_LIMITS = {_RANGES: MAX_RANGES_BYTES, _MANIFEST: 8 << 20, _HEADERS: MAX_BYTES}
_MAX_ACCESS_BYTES = 16 << 10


def ask_again_after(answer: PeersAnswer, times: int) -> float:
    """Returns the seconds after which the controller is asked again.

    At first it is asked more often: nodes that begin at the same time don't know each other, nor how many they are.

    Args:
        answer: The last answer.
        times: How often it was asked.
    """
    return min(answer.interval, SOON_SECONDS * 2.0 ** min(times - 1, 10))


class PeerFinder:
    """The peers of one load. ``start`` begins; ``close`` ends it.

    Args:
        plan: The plan, with peers and reporting.
        access: The plan's peers.
        reporting: The plan's report endpoint.
        entry: The entry.
        digest: The revision's digest.
        node: This node's name; empty: not known.
        make_proofs: Returns proofs of the access to the objects; called in the finder's thread.

    Attributes:
        node: This node's name.
        expected_headers: SHA-256 of the headers file from the controller; empty until it is known.
        headers: What this load has of the headers file, and shows.
    """

    def __init__(
        self,
        plan: Plan,
        access: PeerAccess,
        reporting: Reporting,
        entry: Entry,
        *,
        digest: str,
        node: str,
        make_proofs: Callable[[], Sequence[str]],
    ) -> None:
        self.node = node
        self.expected_headers = ""
        self.problem = ""
        self._server_name = access.server_name
        self._entry = entry
        self._digest = digest
        self._make_proofs = make_proofs
        self._question = Report(kind=ReportKind.PEERS, entry=entry.name, identity=plan.identity, node=node)
        self._endpoint = report_endpoint(reporting)
        self._certificates = b""
        self._stop = threading.Event()
        self._asks_now = threading.Event()
        self._first_look = threading.Event()
        self._peers: tuple[Peer, ...] = ()
        self._ticket = ""
        self._grant: Grant | None = None
        self._token = ""
        self._token_expires = 0.0
        self._token_due = 0.0
        self._views: dict[str, PeerView] = {}
        self._due: dict[str, float] = {}
        self._moved: deque[str] = deque()
        self._failures: dict[str, int] = {}
        self._refused: set[str] = set()
        self._share: SourceShare | None = None
        self._snapshot = PeersSnapshot()
        self._sources: PeerRanges | None = None
        self._client = PeerClient()
        self._has_asked = False
        self._asked_times = 0
        self._answers: deque[PeersAnswer] = deque()
        self._to_ask: list[Peer] = []
        self._refusals: dict[str, float] = {}
        self._task = ""
        self.headers = HeadersOfPeers()
        self._build_headers: Callable[[HeaderCollector], bytes | None] | None = None
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)

    # -- the transfer's side

    def start(self) -> None:
        """Begins to look for peers, and waits shortly for the first ones."""
        self._thread.start()
        self._first_look.wait(FIRST_ANSWER_SECONDS)

    def close(self) -> None:
        """Ends the thread, without waiting for a request in progress."""
        self._stop.set()
        self._asks_now.set()

    def snapshot(self) -> PeersSnapshot:
        """Returns the peers as they are known now."""
        return self._snapshot

    def show(self, ranges: PeerRanges, build_headers: Callable[[HeaderCollector], bytes | None] | None = None) -> None:
        """Begins to show this load's ranges: writes ``ranges`` now, and its files with each ``publish``.

        Args:
            ranges: What this load has, and its objects.
            build_headers: Makes the headers file of all objects, as soon as that is possible; None: not of this load.
        """
        self._build_headers = build_headers
        self._sources = ranges
        self._write(ranges)

    def publish(self, files: Mapping[str, Sequence[ByteRange]], pending: Mapping[str, Sequence[ByteRange]]) -> None:
        """Shows the finished ranges of this load's files."""
        if self._sources is None:
            return
        sizes = {file.path: file.size for file in self._sources.files}

        def listed(ranges: Mapping[str, Sequence[ByteRange]]) -> list[FileRanges]:
            return [FileRanges(path=path, size=sizes[path], ranges=list(found)) for path, found in ranges.items()]

        self._write(
            msgspec.structs.replace(
                self._sources, files=listed(files), pending=listed(pending), headers=self.headers.digest
            )
        )

    def show_headers(self, collected: HeaderCollector) -> bool:
        """Writes the headers file, if all is there, and reports its digest; returns whether this is settled."""
        if self._build_headers is None:
            return True
        data = self._build_headers(collected)
        if data is None:
            return False
        self.headers.show(self._entry, data)
        if self.headers.digest:
            self._question = msgspec.structs.replace(self._question, headers_digest=self.headers.digest)
            self._asks_now.set()
        return True

    def take_headers(self) -> Mapping[int, Sequence[tuple[int, bytes]]] | None:
        """Returns once what a peer's headers file has of the objects of this load."""
        return self.headers.take()

    def refuse(self, node: str) -> None:
        """A peer is no longer asked."""
        self._refused.add(node)

    def look_again(self, node: str) -> None:
        """A peer no longer has what it had: it is looked at soon."""
        self._moved.append(node)

    def token_rejected(self) -> None:
        """A peer did not accept the pass: another one is asked for."""
        self._token_due = min(self._token_due, time.monotonic() + 1.0)

    def fetch_headers(self) -> bytes | None:
        """Returns the headers file of a peer that has the one that the controller expects; None if there is none."""
        if not self.expected_headers or not self._token:
            return None
        for view in self._snapshot.views:
            if not may_have_headers(view, self.expected_headers):
                continue
            response = request_one(self._headers_request(view), seconds=HEADERS_SECONDS)
            if response.status == 200 and headers_digest(response.body) == self.expected_headers:
                return response.body
        return None

    def _headers_request(self, view: PeerView) -> PeerRequest:
        target = msgspec.structs.replace(view.request, url=f"{view.request.url}/{_HEADERS}")
        return PeerRequest(target, _LIMITS[_HEADERS])

    def _write(self, ranges: PeerRanges) -> None:
        try:
            write_ranges(self._entry, ranges)
        except (CacheNotWritable, InsufficientSpace):
            return  # peers then see less

    # -- the threads

    def _ask_again(self) -> None:
        """Asks the controller again and again, which may take long, while the other thread looks at peers."""
        client = ReportClient(self._endpoint)
        while not self._stop.is_set():
            pause = self._ask(client)
            self._has_asked = True
            self._asks_now.wait(pause)
            self._asks_now.clear()
        client.close()

    def _ask(self, client: ReportClient) -> float:
        """Asks the controller; returns the seconds until it is asked again."""
        failure = client.send(encode_report(self._question), timeout=REPORT_SECONDS)
        if failure is not None:
            self.problem = f"The controller could not be asked for peers: {failure.message}."
            return 300.0 if failure.permanent else RETRY_SECONDS
        try:
            answer = decode_peers_answer(client.response)
        except InvalidPlan as error:
            self.problem = error.message
            return 60.0
        self._answers.append(answer)
        self._asked_times += 1
        return ask_again_after(answer, self._asked_times)

    def _run(self) -> None:
        asking = threading.Thread(target=self._ask_again, name="peers-ask", daemon=True)
        asking.start()
        while not self._stop.is_set():
            has_asked = self._has_asked
            while self._answers:
                self._take(self._answers.popleft())
            while self._moved:
                node = self._moved.popleft()
                self._views.pop(node, None)
                self._due.pop(node, None)
            now = time.monotonic()
            self._renew_token(now)
            self._look(now)
            if has_asked and not self._client.tags:
                self._first_look.set()
            answers = self._client.poll(_TICK_SECONDS)
            for tag, response in answers:
                self._handle(tag, response, time.monotonic())
            if not answers and not self._client.tags:
                self._stop.wait(_TICK_SECONDS if has_asked else _FIRST_TICK_SECONDS)
        self._client.close()

    def _handle(self, tag: Tag, response: PeerResponse, now: float) -> None:
        """Takes over what a peer answered, unless it is named no more."""
        peer = next((peer for peer in self._peers if peer.node == tag.node), None)
        if tag.what == _ACCESS:
            self._take_access(tag.node, response, now)
        elif tag.what == _HEADERS:
            self.headers.received(response, self.expected_headers)
            self._update()
        elif peer is None:
            return
        elif response.status == 404 and tag.what == _RANGES:
            self._request(peer, _MANIFEST)  # a complete entry has a manifest; one that is loading, ranges until then
        elif response.status == 404:
            self._due[peer.node] = now + MISSING_SECONDS
            if self._views.pop(peer.node, None) is not None:
                self._update()
        elif self._see(peer, response, complete=tag.what == _MANIFEST, now=now):
            self._update()

    def _take(self, answer: PeersAnswer) -> None:
        if self._ticket and not answer.ticket:
            return  # the controller has begun again, and has no keys yet: its answer before counts
        self.expected_headers = answer.headers_digest or self.expected_headers
        self._task = answer.headers
        self._peers = tuple(peer for peer in answer.peers if not self.node or peer.node != self.node)
        if answer.certificates:
            self._certificates = answer.certificates.encode()
            self._renew_requests()
        grant = read_grant(answer.ticket, Purpose.TICKET)
        if grant is not None:
            self._ticket, self._grant = answer.ticket, grant
        kept = {peer.node: peer.address for peer in self._peers}
        views = {node: view for node, view in self._views.items() if kept.get(node) == view.address}
        nodes = frozenset(peer.node for peer in self._asked())
        share = SourceShare(answer.loading, None if answer.place == NO_PLACE else answer.place)
        self._share = share if answer.loading > max(0, answer.place) else None
        before = self._snapshot
        if views != self._views or (nodes, self._share, self._headers_task) != (
            before.nodes,
            before.share,
            before.headers,
        ):
            self._views = views
            self._update()

    # -- access

    def _renew_token(self, now: float) -> None:
        """Asks a peer for a pass, and the next one if it gives none, if there is no pass or it ends soon."""
        if self._grant is None or any(tag.what == _ACCESS for tag in self._client.tags):
            return
        if not self._to_ask:
            if now < self._token_due:
                return
            self._to_ask = [peer for peer in self._asked() if self._refusals.get(peer.node, 0.0) <= now]
            self._token_due = now + NONE_SECONDS
            if not self._to_ask:
                return
        peer = self._to_ask.pop(0)
        body = msgspec.json.encode(AccessRequest(proofs=tuple(self._make_proofs())))
        target = self._target(peer.address, f"https://{self._authority(peer)}/v1/access", peer.node, self._ticket)
        request = PeerRequest(target, _MAX_ACCESS_BYTES, body)
        self._client.send(Tag(_ACCESS, peer.node), request, seconds=ACCESS_SECONDS)

    def _take_access(self, node: str, response: PeerResponse, now: float) -> None:
        answer = _parse_access(response)
        if response.status == 200 and answer.token:
            self._token, self.problem = answer.token, ""
            self._to_ask = []
            self._renew_requests()
            left = min(answer.expires - time.time(), GRANT_SECONDS)
            self._token_due = now + max(left - RENEW_SECONDS, 5.0)
            return
        if response.status != 404:
            self._refusals[node] = now + REFUSED_SECONDS  # others may have the entry soon
            why = answer.message or response.problem or f"status {response.status}"
            self.problem = f"Peers gave no access ({node}: {why})."

    # -- what peers have

    def _look(self, now: float) -> None:
        """Asks those peers what they have that were not asked lately."""
        if not self._token or self._grant is None:
            return
        asked = {tag.node for tag in self._client.tags if tag.what in {_RANGES, _MANIFEST}}
        expected = self.expected_headers if self._task == AWAIT_HEADERS else ""
        if (view := self.headers.next_peer(expected, self._views.values(), now)) is not None:
            self._client.send(Tag(_HEADERS, view.node), self._headers_request(view), seconds=HEADERS_SECONDS)
        for peer in self._asked():
            if peer.node not in asked and self._due.get(peer.node, 0.0) <= now:
                self._request(peer, _RANGES)

    def _request(self, peer: Peer, what: str) -> None:
        target = self._target(peer.address, f"{self._base_url(peer)}/{what}", peer.node, self._token)
        self._client.send(Tag(what, peer.node), PeerRequest(target, _LIMITS[what]))

    def _see(self, peer: Peer, response: PeerResponse, *, complete: bool, now: float) -> bool:
        """Takes over what a peer answered about its entry; returns whether that is new."""
        before = self._views.get(peer.node)
        if response.status in {401, 403}:
            self.token_rejected()
        if response.status != 200:
            failures = self._failures[peer.node] = self._failures.get(peer.node, 0) + 1
            self._due[peer.node] = now + min(FAILED_SECONDS * 2 ** (failures - 1), COMPLETE_SECONDS)
            return failures >= MAX_FAILURES and self._views.pop(peer.node, None) is not None
        self._failures[peer.node] = 0
        try:
            ranges = ranges_of_manifest(response.body) if complete else decode_ranges(response.body)
        except CacheDamaged:
            ranges = None
        if ranges is None or ranges.digest != self._digest:
            self._due[peer.node] = now + COMPLETE_SECONDS
            self._views.pop(peer.node, None)
            return before is not None
        self._due[peer.node] = now + (COMPLETE_SECONDS if complete else STATE_SECONDS)
        view = PeerView(
            node=peer.node,
            address=peer.address,
            request=self._target(peer.address, self._base_url(peer), peer.node, self._token),
            partial=ranges.partial,
            files={file.path: (file.size, file.ranges) for file in ranges.files},
            pending={file.path: (file.size, file.ranges) for file in ranges.pending},
            headers=ranges.headers,
        )
        if view == before:
            return False
        self._views[peer.node] = view
        return True

    def _renew_requests(self) -> None:
        """Requests peers with the current pass, and by the current certificates."""
        views = {
            node: replace(view, request=self._target(view.address, view.request.url, node, self._token))
            for node, view in self._views.items()
        }
        if views != self._views:
            self._views = views
            self._update()

    def _update(self) -> None:
        generation = self._snapshot.generation + 1
        nodes = frozenset(peer.node for peer in self._asked())
        views = tuple(self._views.values())
        far = frozenset(peer.node for peer in self._asked() if not peer.near)
        self._snapshot = PeersSnapshot(generation, views, nodes, self._share, self._headers_task, far)

    @property
    def _headers_task(self) -> str:
        """What the transfer does about headers; nothing, if they have come."""
        return "" if self.headers.digest and self._task != READ_HEADERS else self._task

    def _asked(self) -> list[Peer]:
        return [peer for peer in self._peers if peer.node not in self._refused]

    def _authority(self, peer: Peer) -> str:
        return f"{self._server_name}:{peer.address.rpartition(':')[2]}"

    def _base_url(self, peer: Peer) -> str:
        assert self._grant is not None  # noqa: S101  # callers have checked it
        return f"https://{self._authority(peer)}/v1/entries/{self._grant.path}"

    def _target(self, address: str, url: str, node: str, token: str) -> RequestTarget:
        return RequestTarget(
            url=url,
            label=f"peer {node}",
            peer_address=address,
            peer_token=token,
            peer_ca=self._certificates,
        )


def _parse_access(response: PeerResponse) -> AccessAnswer:
    try:
        return msgspec.json.decode(response.body, type=AccessAnswer)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return AccessAnswer()
