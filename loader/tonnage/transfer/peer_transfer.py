"""The peers of one transfer: what to ask of which, how they answered, and what is shown to them in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.contract import DroppedPeer
from tonnage.errors import Reason
from tonnage.transfer.peer_index import UnitIndex
from tonnage.transfer.peer_ledger import PeerFault, PeerLedger, slots_per_peer
from tonnage.transfer.peer_origin import PeerOrigin, PeerRange
from tonnage.transfer.peer_queue import Holding, PeerQueue
from tonnage.transfer.peer_units import make_units, unit_size
from tonnage.transfer.peer_view import PeersSnapshot

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tonnage.planning.segments import ByteRange
    from tonnage.source.request_target import RequestTarget
    from tonnage.transfer.finished_ranges import FinishedRanges
    from tonnage.transfer.part_queue import Part
    from tonnage.transfer.peer_units import Unit
    from tonnage.transfer.peer_view import PeerSource, PeerView
    from tonnage.transfer.protocol import FetchFailed
    from tonnage.transfer.transfer_spec import TransferResult, TransferSpec

PUBLISH_SECONDS = 0.2
"""Minimum seconds between two changes of what is shown to peers."""
MAX_PEER_SLOTS = 24
DOUBT_SECONDS = 60.0
"""For how long a peer is not asked whose bytes are in doubt, unless they turn out to be right before."""
MAX_DROPPED = 64
MAX_FIRST_BYTES = 64 << 20
"""Bytes of configuration and tokenizer that a node reads before the tensors, so that the headers file can be made."""
_OTHER_ENTRY = frozenset({Reason.SOURCE_CHANGED, Reason.STORE_UNSUPPORTED, Reason.OBJECT_NOT_FOUND})
_STALLED = "stalled"


class PeerTransfer:
    """The peers of one transfer.

    Attributes:
        queue: What is left to fetch.
        finished: What is shown to peers.
        origin: Which bytes came from which peer.
    """

    def __init__(
        self,
        spec: TransferSpec,
        source: PeerSource,
        result: TransferResult,
        done: Mapping[int, list[ByteRange]],
        finished: FinishedRanges,
        *,
        believable: Collection[int],
    ) -> None:
        self._spec = spec
        self._source = source
        self._result = result
        self._ledger = PeerLedger()
        self._snapshot = PeersSnapshot(generation=-1)
        self._published = float("-inf")
        self._sent_at: dict[int, float] = {}
        self.finished = finished
        self.origin = PeerOrigin()
        files = [(file.path, file.size) for file in spec.blueprint.files]
        size = unit_size(spec.blueprint.source_bytes, spec.concurrency.part_size)
        units = make_units(spec.blueprint.segments, done, believable=believable, size=size)
        self._index = UnitIndex(units, files)
        self._holdings: dict[str, tuple[PeerView, Holding]] = {}
        self._shown: dict[str, list[ByteRange]] = {}
        self._headers_shown = False
        first = _units_without_hashes(spec, units)
        self.queue = PeerQueue(units, self._index, node=source.node, ledger=self._ledger, first=first)

    @property
    def slots(self) -> int:
        """Connections to peers, and for short requests to the source beside others, of all workers together."""
        views = len(self._snapshot.views)
        reads = self.queue.small_slots if self._snapshot.nodes or self._snapshot.headers else 0
        return min(MAX_PEER_SLOTS, slots_per_peer(views) * views) + reads

    def poll(self, now: float) -> bool:
        """Takes over what is known of peers, and shows them what is new. Returns whether the peers have changed."""
        if now - self._published >= PUBLISH_SECONDS:
            self._published = now
            pending = self._pending()
            if self.finished.changed or pending != self._shown:
                self._shown = pending
                self._source.publish(self.finished.take(), pending)
        if self.queue.has_read_headers and not self._headers_shown:
            self._headers_shown = self._source.show_headers(self._result.collected)
        snapshot = self._source.snapshot()
        if snapshot.generation == self._snapshot.generation:
            return False
        self._snapshot = snapshot
        self._holdings = {view.node: (view, self._holding(view)) for view in snapshot.views}
        holdings = {node: holding for node, (_, holding) in self._holdings.items()}
        self.queue.update(
            holdings, snapshot.nodes, now=now, share=snapshot.share, headers=snapshot.headers, far=snapshot.far
        )
        return True

    def take_headers(self) -> Mapping[int, Sequence[tuple[int, bytes]]]:
        """Returns what has come of headers from a peer since the last time, by the object's index."""
        return self._source.take_headers() or {}

    def _holding(self, view: PeerView) -> Holding:
        seen = self._holdings.get(view.node)
        if seen is not None and seen[0] is view:
            return seen[1]
        return Holding(self._index.covered(view.files), self._index.covered(view.pending))

    def request(self, part: Part, number: int, now: float) -> tuple[RequestTarget, float] | None:
        """Returns how to ask for a peer's part, and how long it may take; None if the peer has gone since."""
        if part.peer not in self._holdings:
            return None
        view = self._holdings[part.peer][0]
        file = self._spec.blueprint.files[part.file]
        self._sent_at[number] = now
        return view.target(file.path, size=file.size), self._ledger.request_seconds(part.end - part.start)

    def received(self, index: int, part: Part, end: int, checksums: Sequence[int]) -> None:
        """Notes who sent a range, before it is verified; or compares it with what a peer sent before."""
        if part.peer:
            self._result.peer_bytes += end - part.start
            self.origin.add(index, PeerRange(part.start, end, part.peer, tuple(checksums)))
            return
        settled = self.origin.settle(index, part.start, end, checksums)
        if settled is None:
            return
        if settled.was_right:
            self._ledger.resume(settled.node, now=0.0)
        else:
            self._drop(settled.node, PeerFault.WRONG_BYTES, "It sent bytes that are not those of the source.")

    def succeeded(self, part: Part, number: int, now: float) -> None:
        """A peer has sent all of a part."""
        seconds = now - self._sent_at.pop(number, now)
        self._ledger.succeeded(part.peer, size=part.end - part.start, seconds=seconds)

    def failed(self, part: Part, number: int, message: FetchFailed, now: float) -> None:
        """A peer has not sent all of a part."""
        self._sent_at.pop(number, None)
        fault = classify_fault(message)
        if fault is PeerFault.DENIED:
            self._source.token_rejected()
        if fault is PeerFault.MOVED:
            self.queue.forget(part.peer)
            self._source.look_again(part.peer)
        if self._ledger.failed(part.peer, fault, now=now):
            self._record_drop(part.peer, fault, message.failure.message)
        self._result.retries += 1
        self.queue.return_to_peers(part, max(message.end, part.start))

    def lost(self, part: Part, number: int) -> None:
        """The worker that asked a peer has exited."""
        self._sent_at.pop(number, None)
        self._ledger.failed(part.peer, PeerFault.BUSY, now=0.0)
        self.queue.return_to_peers(part, part.start)

    def doubt(self, index: int, ranges: Sequence[PeerRange], now: float) -> None:
        """Leaves peers alone that sent ranges of something that does not match its hash."""
        self.origin.doubt(index, ranges)
        for each in ranges:
            self._ledger.suspend(each.node, until=now + DOUBT_SECONDS)

    def _drop(self, node: str, fault: PeerFault, why: str) -> None:
        if self._ledger.drop(node, fault):
            self._record_drop(node, fault, why)

    def _record_drop(self, node: str, fault: PeerFault, why: str) -> None:
        self.queue.forget(node)
        self._source.refuse(node)
        if len(self._result.dropped_peers) < MAX_DROPPED:
            self._result.dropped_peers.append(DroppedPeer(node=node, reason=fault.value, why=why[:1000]))

    def _pending(self) -> dict[str, list[ByteRange]]:
        pending: dict[str, list[ByteRange]] = {}
        for unit in self.queue.pending:
            path = self._spec.blueprint.files[unit.file].path
            pending.setdefault(path, []).append((unit.offset, unit.offset + unit.size))
        return {path: sorted(ranges) for path, ranges in pending.items()}


def _units_without_hashes(spec: TransferSpec, units: Sequence[Unit]) -> int:
    """Returns the units of objects that hold no hashes, whose checksum is a part of the headers file.

    None if they are much: then the headers file is made when the load has ended.
    """
    objects, segments = spec.blueprint.objects, spec.blueprint.segments
    if sum(source.size for source in objects if not source.has_hashes) > MAX_FIRST_BYTES:
        return 0
    return sum(
        1 << number for number, unit in enumerate(units) if not objects[segments[unit.segment].object_index].has_hashes
    )


def classify_fault(message: FetchFailed) -> PeerFault:
    """Returns what was wrong with a peer's answer, from its status and the failure."""
    status = message.status
    if status in {429, 503}:
        return PeerFault.BUSY
    if status in {401, 403}:
        return PeerFault.DENIED
    if status == 404:
        return PeerFault.MOVED
    if status in {200, 206, 412, 416} and message.failure.reason in _OTHER_ENTRY:
        return PeerFault.OTHER_ENTRY
    return PeerFault.STALL if _STALLED in message.failure.message else PeerFault.ERROR
