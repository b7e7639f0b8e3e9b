"""Finds a load's peers: asks the controller who they are, gets a pass, and reads again and again what they have.

A thread does it beside the transfer, which takes the newest picture of the peers whenever it looks. Whatever fails here
costs the load nothing but the peers: it goes on with its source.
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
    GRANT_SECONDS,
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
from tonnage.loading.peers.client import ACCESS_SECONDS, PeerRequest, PeerResponse, request_all
from tonnage.loading.peers.headers_file import MAX_BYTES, decode_headers, headers_digest
from tonnage.reporting.client import ReportClient
from tonnage.reporting.reporter import report_endpoint
from tonnage.source.request_target import RequestTarget
from tonnage.transfer.peer_view import PeersSnapshot, PeerView

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tonnage.cache.entry import Entry
    from tonnage.contract import Plan
    from tonnage.contract.plan import PeerAccess, Reporting
    from tonnage.loading.peers.headers_file import HeadersFile
    from tonnage.planning.segments import ByteRange

STATE_SECONDS = 0.4
"""Seconds between two looks at a peer that is loading."""
COMPLETE_SECONDS = 30.0
"""The same of one that has everything."""
MAX_FAILURES = 3
"""Looks at a peer that failed in a row, after which what it had counts no more."""
FIRST_ANSWER_SECONDS = 3.0
"""For how long a load waits for its peers before it begins without."""
REPORT_SECONDS = 3.0
RETRY_SECONDS = 5.0
RENEW_SECONDS = 240.0
"""A pass is renewed when it is valid for no longer than this."""
REFUSED_SECONDS = 30.0
"""After a refusal of all peers, the pass is asked for again after this time."""
_TICK_SECONDS = 0.1
_MAX_MANIFEST_BYTES = 8 << 20
_MAX_ACCESS_BYTES = 16 << 10


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
        self._body = encode_report(Report(kind=ReportKind.PEERS, entry=entry.name, identity=plan.identity, node=node))
        self._endpoint = report_endpoint(reporting)
        self._certificates = b""
        self._stop = threading.Event()
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
        self._snapshot = PeersSnapshot()
        self._sources: PeerRanges | None = None
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)

    # -- the transfer's side

    def start(self) -> None:
        """Begins to look for peers, and waits shortly for the first ones."""
        self._thread.start()
        self._first_look.wait(FIRST_ANSWER_SECONDS)

    def close(self) -> None:
        """Ends the thread, without waiting for a request in progress."""
        self._stop.set()

    def snapshot(self) -> PeersSnapshot:
        """Returns the peers as they are known now."""
        return self._snapshot

    def show(self, ranges: PeerRanges) -> None:
        """Begins to show this load's ranges: writes ``ranges`` now, and its files with each ``publish``."""
        self._sources = ranges
        self._write(ranges)

    def publish(self, files: Mapping[str, Sequence[ByteRange]], pending: Mapping[str, Sequence[ByteRange]]) -> None:
        """Shows the finished ranges of this load's files."""
        if self._sources is None:
            return
        sizes = {file.path: file.size for file in self._sources.files}

        def listed(ranges: Mapping[str, Sequence[ByteRange]]) -> list[FileRanges]:
            return [FileRanges(path=path, size=sizes[path], ranges=list(found)) for path, found in ranges.items()]

        self._write(msgspec.structs.replace(self._sources, files=listed(files), pending=listed(pending)))

    def refuse(self, node: str) -> None:
        """A peer is no longer asked."""
        self._refused.add(node)

    def look_again(self, node: str) -> None:
        """A peer no longer has what it had: it is looked at soon."""
        self._moved.append(node)

    def token_rejected(self) -> None:
        """A peer did not accept the pass: another one is asked for."""
        self._token_due = min(self._token_due, time.monotonic() + 1.0)

    def fetch_headers(self) -> HeadersFile | None:
        """Returns the headers file of a peer that has the one that the controller expects; None if there is none."""
        if not self.expected_headers or not self._token:
            return None
        for view in self._snapshot.views:
            target = msgspec.structs.replace(view.request, url=f"{view.request.url}/headers")
            response = request_all([PeerRequest(target, MAX_BYTES)], seconds=30.0)[0]
            if response.status == 200 and headers_digest(response.body) == self.expected_headers:
                return decode_headers(response.body)
        return None

    def _write(self, ranges: PeerRanges) -> None:
        try:
            write_ranges(self._entry, ranges)
        except (CacheNotWritable, InsufficientSpace):
            return  # peers then see less

    # -- the thread

    def _run(self) -> None:
        client = ReportClient(self._endpoint)
        ask_at = 0.0
        while not self._stop.is_set():
            now = time.monotonic()
            if now >= ask_at:
                ask_at = now + self._ask(client)
            self._renew_token(now)
            while self._moved:
                node = self._moved.popleft()
                self._views.pop(node, None)
                self._due.pop(node, None)
            self._look(now)
            self._first_look.set()
            self._stop.wait(_TICK_SECONDS)
        client.close()

    def _ask(self, client: ReportClient) -> float:
        """Asks the controller; returns the seconds until it is asked again."""
        failure = client.send(self._body, timeout=REPORT_SECONDS)
        if failure is not None:
            self.problem = f"The controller could not be asked for peers: {failure.message}."
            return 300.0 if failure.permanent else RETRY_SECONDS
        try:
            answer = decode_peers_answer(client.response)
        except InvalidPlan as error:
            self.problem = error.message
            return 60.0
        self._take(answer)
        return answer.interval

    def _take(self, answer: PeersAnswer) -> None:
        self.expected_headers = answer.headers_digest or self.expected_headers
        self._peers = tuple(peer for peer in answer.peers if not self.node or peer.node != self.node)
        if answer.certificates:
            self._certificates = answer.certificates.encode()
            self._renew_requests()
        grant = read_grant(answer.ticket, Purpose.TICKET)
        if grant is not None:
            self._ticket, self._grant = answer.ticket, grant
        kept = {peer.node: peer.address for peer in self._peers}
        views = {node: view for node, view in self._views.items() if kept.get(node) == view.address}
        if views != self._views:
            self._views = views
            self._update()

    def _renew_token(self, now: float) -> None:
        """Asks peers for a pass, one after the other, if there is none or it ends soon."""
        if self._grant is None or not self._peers or now < self._token_due:
            return
        body = msgspec.json.encode(AccessRequest(proofs=tuple(self._make_proofs())))
        why = ""
        for peer in self._asked():
            target = self._target(peer.address, f"https://{self._authority(peer)}/v1/access", peer.node, self._ticket)
            response = request_all([PeerRequest(target, _MAX_ACCESS_BYTES, body)], seconds=ACCESS_SECONDS)[0]
            answer = _parse_access(response)
            if response.status == 200 and answer.token:
                self._token, self.problem = answer.token, ""
                self._renew_requests()
                left = min(answer.expires - time.time(), GRANT_SECONDS)
                self._token_due = time.monotonic() + max(left - RENEW_SECONDS, 5.0)
                return
            if response.status != 404:
                why = f"{peer.node}: {answer.message or response.problem or f'status {response.status}'}"
            if self._stop.is_set():
                return
        self._token_due = time.monotonic() + (REFUSED_SECONDS if why else 1.0)
        if why:
            self.problem = f"Peers gave no access ({why})."

    def _look(self, now: float) -> None:
        """Reads what those peers have that were not looked at lately."""
        if not self._token or self._grant is None:
            return
        due = [peer for peer in self._asked() if self._due.get(peer.node, 0.0) <= now]
        changed = False
        # A complete entry has a manifest; one that is loading has ranges until then.
        for name, limit, parse in (
            ("ranges", MAX_RANGES_BYTES, decode_ranges),
            ("manifest", _MAX_MANIFEST_BYTES, ranges_of_manifest),
        ):
            targets = [
                self._target(peer.address, f"{self._base_url(peer)}/{name}", peer.node, self._token) for peer in due
            ]
            responses = request_all([PeerRequest(target, limit) for target in targets]) if due else []
            missing = []
            for peer, response in zip(due, responses, strict=True):
                if response.status == 404:
                    missing.append(peer)
                    self._due[peer.node] = now + 1.0
                    continue
                changed |= self._see(peer, response, parse, complete=name == "manifest", now=now)
            due = missing
        for peer in due:
            changed |= self._views.pop(peer.node, None) is not None
        if changed:
            self._update()

    def _see(
        self,
        peer: Peer,
        response: PeerResponse,
        parse: Callable[[bytes], PeerRanges],
        *,
        complete: bool,
        now: float,
    ) -> bool:
        """Takes over what a peer answered about its entry; returns whether that is new."""
        before = self._views.get(peer.node)
        self._due[peer.node] = now + (COMPLETE_SECONDS if complete else STATE_SECONDS)
        if response.status in {401, 403}:
            self.token_rejected()
        if response.status != 200:
            self._due[peer.node] = now + 2.0
            self._failures[peer.node] = self._failures.get(peer.node, 0) + 1
            return self._failures[peer.node] >= MAX_FAILURES and self._views.pop(peer.node, None) is not None
        self._failures[peer.node] = 0
        try:
            ranges = parse(response.body)
        except CacheDamaged:
            ranges = None
        if ranges is None or ranges.digest != self._digest:
            self._due[peer.node] = now + COMPLETE_SECONDS
            self._views.pop(peer.node, None)
            return before is not None
        view = PeerView(
            node=peer.node,
            address=peer.address,
            request=self._target(peer.address, self._base_url(peer), peer.node, self._token),
            partial=ranges.partial,
            files={file.path: (file.size, file.ranges) for file in ranges.files},
            pending={file.path: (file.size, file.ranges) for file in ranges.pending},
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
        self._snapshot = PeersSnapshot(generation, tuple(self._views.values()))

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
