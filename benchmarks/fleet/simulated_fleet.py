"""A simulated fleet whose nodes decide by the loader's and the controller's own code: see ``simulation.py``.

What is real: the choice of what comes from where (``PeerQueue``, ``PeerLedger``, ``UnitIndex``, ``make_units``), which
peers the controller names (``choose_peers``, ``find_holders``), and how many loads it starts
(``count_feedable_loads``). What is simulated: links, the bucket, and delays. Bytes flow in steps of time: all flows of
a link share it evenly, as far as no other limit holds them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from shared_links import share

from tonnage.contract.peers import AWAIT_HEADERS, MAX_PEERS, Peer, PeersAnswer
from tonnage.loading.peers.finder import STATE_SECONDS, ask_again_after
from tonnage.planning.segments import Segment, Span, SpanRole
from tonnage.source.backoff import backoff_seconds
from tonnage.transfer.concurrency import INITIAL_CONNECTIONS
from tonnage.transfer.coordinator import MAX_ATTEMPTS, MAX_BACKOFF_SECONDS, THROTTLED_SECONDS
from tonnage.transfer.part_queue import Part
from tonnage.transfer.peer_index import UnitIndex
from tonnage.transfer.peer_ledger import PeerLedger
from tonnage.transfer.peer_queue import Holding, PeerQueue
from tonnage.transfer.peer_transfer import PUBLISH_SECONDS
from tonnage.transfer.peer_units import SMALL_BYTES, SOURCE_ONLY, make_units
from tonnage.transfer.source_share import SourceShare
from tonnage_operator.domain.peers.choice import NodeRing, choose_peers, find_holders
from tonnage_operator.domain.peers.feeding import count_feedable_loads, is_holder
from tonnage_operator.domain.peers.headers import HeaderReaders
from tonnage_operator.domain.peers.loading import LoadingNodes

if TYPE_CHECKING:
    from tonnage.transfer.peer_units import Unit

POLL_SECONDS = 0.1
FIRST_LOOK_SECONDS = 0.2
HEADERS_SECONDS = 0.05
"""From a look at a peer that has the headers file until it has come: some hundred kilobytes."""
HEADER_BYTES = 256
MAX_WORKERS = 16
DYING_SECONDS = 10.0
BURST_SECONDS = 0.05
"""For so long, the bucket answers requests that it could have answered before."""


@dataclass(frozen=True)
class Settings:
    """What is simulated. Rates are in bytes a second.

    Attributes:
        tensors: Sizes of the model's tensors in bytes.
        nodes: Number of nodes.
        link: Rate of a node's link, in each direction.
        bucket: Rate of the bucket's link.
        unit: Largest unit in bytes.
        step: Seconds of a step.
        seed: Of all that is random.
        first_loads: Loads that are started without holders; others follow by ``count_feedable_loads``. 0: all
            nodes begin within a second.
        source_connection: Rate of a connection to the bucket.
        peer_connection: Rate of a connection to a peer.
        source_delay: Seconds until the bucket answers.
        start_delay: Seconds from the decision to load to the loader's first request: a pod is started.
        dying: Share of the nodes whose loaders die within their first ten seconds. Their peers go on serving.
        shares_headers: Whether the first loads read all headers for the others, as the controller has them do; if not,
            each node reads all headers from the bucket.
        zones: Zones in which the nodes are, in turn.
        prefers_zone: Whether peers of the own zone are preferred.
        requests: Requests a second that the bucket answers; it refuses what is more, as S3 does with 503 SlowDown, and
            a load tries again as the loader does. 0: no limit.
    """

    tensors: tuple[int, ...]
    nodes: int
    link: float
    bucket: float
    unit: int
    step: float
    seed: int = 1
    first_loads: int = 0
    source_connection: float = 90e6
    peer_connection: float = 1e9
    source_delay: float = 0.05
    peer_delay: float = 0.005
    start_delay: float = 3.0
    dying: float = 0.0
    shares_headers: bool = True
    requests: float = 0.0
    zones: int = 1
    prefers_zone: bool = True

    @property
    def size(self) -> int:
        """Bytes of the model."""
        return sum(self.tensors)

    @property
    def limit(self) -> float:
        """Seconds that no way of sending can undercut."""
        total = self.nodes * self.size / (self.bucket + self.nodes * self.link)
        return max(self.size / self.link, self.size / self.bucket, total)


@dataclass
class Outcome:
    """Seconds until each node had the model that lived, bytes that the bucket sent, and the same over time."""

    seconds: list[float]
    bucket_bytes: float
    timeline: list[tuple[float, float, float, int]]
    """Seconds, bytes of the bucket so far, bytes at all nodes so far, complete nodes."""
    requests: dict[str, int] = field(default_factory=dict)
    """Requests that the bucket has answered, for ``headers`` and for ``data``, and those that it has ``refused``."""
    zone_bytes: float = 0.0
    """Bytes that nodes had from peers of other zones."""
    failed: int = 0
    """Loads that failed, because one request of theirs was refused too often."""


@dataclass
class _Shown:
    """What a node shows: kept while it does not change, so that others notice."""

    holding: Holding = field(default_factory=Holding)
    headers: bool = False


class _Model:
    """The model's units, and which of them make a tensor."""

    def __init__(self, settings: Settings) -> None:
        spans: list[Span] = []
        end = offset = 0
        for tensor, size in enumerate(settings.tensors):
            end += HEADER_BYTES
            spans.append(Span(end, SpanRole.HEADER, tensor, -1))
            end += size
            spans.append(Span(end, SpanRole.DATA, tensor, offset))
            offset += size
        segment = Segment(0, 0, 0, 0, end, tuple(spans))
        self.units: list[Unit] = make_units([segment], {}, believable={0}, size=settings.unit)
        self.index = UnitIndex(self.units, [("model", offset)])
        self.whole = (1 << len(self.units)) - 1
        self.number_of = {unit.start: number for number, unit in enumerate(self.units)}
        self._tensor_of: list[int] = []
        """The units of the tensor that a unit is of, with its header, without which it is not verified."""
        starts = [number for number, unit in enumerate(self.units) if unit.file == SOURCE_ONLY]
        for start, end in zip(starts, [*starts[1:], len(self.units)], strict=True):
            self._tensor_of += [(1 << end) - (1 << start)] * (end - start)

    def tensors_of(self, first: int, last: int) -> set[int]:
        """Returns the units of each tensor that units in a row are of."""
        return {self._tensor_of[first], self._tensor_of[last]}


class _Node:
    def __init__(self, number: int, model: _Model, phase: float) -> None:
        self.name = f"node-{number}"
        self.number = number
        self.model = model
        self.ledger = PeerLedger()
        self.queue = PeerQueue(model.units, model.index, node=self.name, ledger=self.ledger)
        self.slots = INITIAL_CONNECTIONS * MAX_WORKERS
        self.started: float | None = None
        self.done: float | None = None
        self.dies = float("inf")
        self.received = 0
        """Units on disk."""
        self.received_at = float("inf")
        self.verified = 0
        """Units that may be shown."""
        self.bytes = 0
        self.shown = _Shown()
        self.changed = False
        self.peers: tuple[int, ...] = ()
        self.times_asked = 0
        self.begins = False
        """Whether it knows its first peers: a load waits for them."""
        self.share: SourceShare | None = None
        self.seen: dict[int, _Shown] = {}
        self.seen_share: SourceShare | None = None
        self.has_headers = False
        """Whether it has the headers file: read from the bucket, or taken from a peer."""
        self.expects_headers = False
        """Whether the controller has sent it the digest."""
        self.task = self.seen_task = ""
        self.headers_at = float("inf")
        self.credit = 0.0
        self.next_ask = self.next_look = self.next_poll = 0.0
        self.next_publish = phase * PUBLISH_SECONDS
        self.phase = phase

    def got(self, part: Part, seconds: float, now: float) -> None:
        """A part has arrived."""
        first = self.model.number_of[part.start]
        last = first
        while self.model.units[last].end < part.end:
            last += 1
        self._add(first, last)
        self.received_at = now
        self.queue.finished(part, end=part.end, now=now)
        if part.peer:
            self.ledger.succeeded(part.peer, size=part.end - part.start, seconds=seconds)
        else:
            self.verified |= ((1 << (last + 1)) - (1 << first)) & self.model.index.for_peers
            self.changed = True
        if self.received == self.model.whole:
            self.done = now

    def publish(self) -> None:
        pending = 0
        for unit in self.queue.pending:
            pending |= 1 << self.model.number_of[unit.start]
        if self.queue.has_read_headers and self.received & self.model.index.small == self.model.index.small:
            self.has_headers = True
        shown = self.shown
        if self.changed or pending != shown.holding.pending or self.has_headers != shown.headers:
            self.shown = _Shown(Holding(self.verified, pending), self.has_headers)
            self.changed = False

    def take_headers(self) -> None:
        """The headers file has come from a peer."""
        self.has_headers, self.headers_at = True, float("inf")
        numbers = [number for number, _ in self.queue.short_units]
        self.queue.drop(numbers)
        for number in numbers:
            self._add(number, number)

    def _add(self, first: int, last: int) -> None:
        """Units in a row have arrived; what they complete may be shown."""
        bits = (1 << (last + 1)) - (1 << first)
        self.received |= bits
        self.bytes += sum(unit.size for unit in self.model.units[first : last + 1])
        for tensor in self.model.tensors_of(first, last):
            if self.received & tensor == tensor:
                self.verified |= tensor & self.model.index.for_peers
                self.changed = True


class Fleet:
    """The fleet. ``run`` has it load the model."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._random = random.Random(settings.seed)
        self._model = _Model(settings)
        self._nodes = [_Node(number, self._model, self._random.random()) for number in range(settings.nodes)]
        self._ring = NodeRing(node.name for node in self._nodes)
        self._numbers = {node.name: node.number for node in self._nodes}
        self._loading = LoadingNodes()
        self._readers = HeaderReaders()
        self._complete: set[str] = set()
        self._waiting: list[tuple[float, int]] = []
        self._unstarted = [node.number for node in self._nodes]
        self._active: set[int] = set()
        self._next_reconcile = 0.0
        capacity = 64 * settings.nodes
        self._source = np.zeros(capacity, dtype=np.int64)
        self._target = np.zeros(capacity, dtype=np.int64)
        self._left = np.zeros(capacity)
        self._cap = np.zeros(capacity)
        self._begins = np.zeros(capacity)
        self._parts: list[Part | None] = [None] * capacity
        self._sent_at = np.zeros(capacity)
        self._free = list(range(capacity - 1, -1, -1))
        self._used = np.zeros(capacity, dtype=bool)
        self._bucket_bytes = 0.0
        self._is_admitted = np.zeros(capacity, dtype=bool)
        self._tokens = settings.requests * BURST_SECONDS
        self._requests = {"headers": 0, "data": 0, "refused": 0}
        self._failed = 0
        self._zone_bytes = 0.0
        self._links = np.full(settings.nodes + 1, settings.link)
        self._links[-1] = settings.bucket
        if not settings.first_loads:
            self._waiting = [(self._random.random(), number) for number in self._unstarted]
            self._unstarted = []

    def run(self) -> Outcome:
        """Runs until all nodes have the model."""
        now = 0.0
        step = self._settings.step
        timeline = []
        next_sample = 0.0
        while self._unstarted or self._waiting or self._active:
            self._start(now)
            self._control(now)
            self._flow(now)
            now += step
            if now >= next_sample:
                next_sample += 0.25
                total = float(sum(node.bytes for node in self._nodes))
                timeline.append((now, self._bucket_bytes, total, len(self._complete)))
            if now > 100 * self._settings.limit + 600:
                raise RuntimeError("the simulated fleet does not finish")
        seconds = [node.done for node in self._nodes if node.done is not None]
        return Outcome(
            seconds, self._bucket_bytes, timeline, self._requests, zone_bytes=self._zone_bytes, failed=self._failed
        )

    # -- the controller

    def _start(self, now: float) -> None:
        if self._unstarted and now >= self._next_reconcile:
            self._next_reconcile = now + 1.0
            size = self._settings.size
            holders = len(self._complete) + sum(is_holder(self._nodes[at].bytes, size) for at in self._active)
            running = len(self._active) + len(self._waiting)
            for _ in range(count_feedable_loads(self._settings.first_loads, holders) - running):
                if self._unstarted:
                    delay = self._settings.start_delay * (0.8 + 0.4 * self._random.random())
                    self._waiting.append((now + delay, self._unstarted.pop(0)))
        if self._waiting:
            due = [number for at, number in self._waiting if at <= now]
            self._waiting = [(at, number) for at, number in self._waiting if at > now]
            for number in due:
                node = self._nodes[number]
                node.started = node.received_at = now
                if self._random.random() < self._settings.dying:
                    node.dies = now + DYING_SECONDS * self._random.random()
                node.next_ask = now
                node.next_look = now + node.phase * STATE_SECONDS
                self._active.add(number)

    def _ask(self, node: _Node, now: float) -> None:
        holders = find_holders(
            node.name,
            self._ring,
            recorded=self._complete,
            loading=self._loading.nodes(now),
            is_complete=self._complete.__contains__,
        )
        chosen = choose_peers(node.name, holders, MAX_PEERS, is_near=lambda name: self._is_near(node, name))
        node.peers = tuple(self._numbers[name] for name in chosen)
        self._loading.note(node.name, now, serves=True)
        node.share = SourceShare(self._loading.places, self._loading.place(node.name))
        node.times_asked += 1
        if self._settings.shares_headers:
            self._readers.note(node.name, "known" if node.has_headers else "")
            asking = self._loading.nodes(now)
            node.task = self._readers.task(node.name, now, may_read=True, loading=asking)
            node.expects_headers = bool(self._readers.digest)
        answer = PeersAnswer(peers=tuple(Peer(node=name, address="10.0.0.1:9443") for name in chosen))
        node.next_ask = now + ask_again_after(answer, node.times_asked)

    # -- the nodes

    def _control(self, now: float) -> None:
        for number in sorted(self._active):
            node = self._nodes[number]
            if now >= node.dies:
                self._active.discard(number)
                continue
            acts = False
            if now >= node.next_ask:
                self._ask(node, now)
                soon = now + FIRST_LOOK_SECONDS
                node.next_look = min(node.next_look, soon) if node.begins else soon
                acts = True
            if now >= node.next_publish:
                node.next_publish = now + PUBLISH_SECONDS
                had_headers = node.has_headers
                node.publish()
                if node.has_headers and not had_headers:
                    node.next_ask = now  # it reports the digest at once
            if now >= node.headers_at:
                node.take_headers()
                node.seen = {}
                acts = True
            if now >= node.next_look:
                node.next_look = now + STATE_SECONDS
                acts |= self._look(node, now)
                node.begins = True
            if node.begins and (acts or now >= node.next_poll):
                node.next_poll = now + POLL_SECONDS
                self._take(node, now)

    def _look(self, node: _Node, now: float) -> bool:
        seen = {at: self._nodes[at].shown for at in node.peers if self._nodes[at].started is not None}
        task = "" if node.has_headers and node.task == AWAIT_HEADERS else node.task
        is_same = (node.share, task) == (node.seen_share, node.seen_task) and seen.keys() == node.seen.keys()
        if is_same and all(seen[at] is node.seen[at] for at in seen):
            return False
        node.seen, node.seen_share, node.seen_task = seen, node.share, task
        if node.expects_headers and not node.has_headers and any(shown.headers for shown in seen.values()):
            node.headers_at = min(node.headers_at, now + HEADERS_SECONDS)
        holdings = {self._nodes[at].name: shown.holding for at, shown in seen.items()}
        names = [self._nodes[at].name for at in node.peers]
        far = [name for name in names if not self._is_near(node, name)]
        node.queue.update(holdings, names, now=now, share=node.share, headers=task, far=far)
        return True

    def _is_near(self, node: _Node, name: str) -> bool:
        zones = self._settings.zones
        return not self._settings.prefers_zone or self._numbers[name] % zones == node.number % zones

    def _take(self, node: _Node, now: float) -> None:
        settings = self._settings
        while node.queue.remaining:
            part = node.queue.take(0, slots=node.slots, now=now)
            if part is None:
                return
            at = self._free.pop()
            self._used[at] = True
            self._is_admitted[at] = bool(part.peer)
            self._parts[at] = part
            self._target[at] = node.number
            self._left[at] = part.end - part.start
            self._sent_at[at] = now
            if part.peer:
                self._source[at] = self._numbers[part.peer]
                is_far = (self._source[at] - node.number) % settings.zones != 0
                self._zone_bytes += (part.end - part.start) * is_far
                self._cap[at] = settings.peer_connection
                self._begins[at] = now + settings.peer_delay
                credit = min(node.credit, self._left[at] / 2)
                self._left[at] -= credit
                node.credit -= credit
            else:
                self._source[at] = settings.nodes
                self._cap[at] = settings.source_connection
                self._begins[at] = now + settings.source_delay

    # -- the bucket's requests

    def _admit(self, now: float) -> None:
        """Lets the bucket answer as many of the requests that have arrived as it can, and refuse the others."""
        rate = self._settings.requests
        self._tokens = min(self._tokens + rate * self._settings.step, rate * BURST_SECONDS)
        arrived = np.flatnonzero(self._used & ~self._is_admitted & (self._begins <= now)).tolist()
        if rate and len(arrived) > self._tokens:
            self._random.shuffle(arrived)
        for count, at in enumerate(arrived):
            part = self._parts[at]
            assert part is not None
            if rate and count >= self._tokens:
                self._refuse(self._nodes[self._target[at]], part, at, now)
                continue
            self._is_admitted[at] = True
            self._requests["headers" if part.end - part.start < SMALL_BYTES else "data"] += 1
        self._tokens -= min(len(arrived), self._tokens) if rate else 0

    def _refuse(self, node: _Node, part: Part, at: int, now: float) -> None:
        self._requests["refused"] += 1
        self._used[at] = False
        self._parts[at] = None
        self._free.append(at)
        node.queue.finished(part, end=part.start, now=now)
        if part.attempt >= MAX_ATTEMPTS and now - node.received_at >= THROTTLED_SECONDS:
            if node.number in self._active:
                self._active.discard(node.number)
                self._failed += 1
            return
        delay = backoff_seconds(part.attempt + 1, maximum=MAX_BACKOFF_SECONDS, jitter=self._random.random())
        node.queue.requeue(Part(part.segment, part.start, part.end, part.attempt + 1), not_before=now + delay)

    # -- links

    def _flow(self, now: float) -> None:
        step = self._settings.step
        self._admit(now)
        flows = np.flatnonzero(self._used & self._is_admitted & (self._begins <= now))
        if not len(flows):
            return
        source, target = self._source[flows], self._target[flows]
        caps = np.minimum(self._cap[flows], self._left[flows] / step)  # what is left of a flow's step is for others
        rates = share(source, target, caps, self._links)
        moved = rates * step
        self._left[flows] -= moved
        is_bucket = source == self._settings.nodes
        self._bucket_bytes += float(np.minimum(moved, self._left[flows] + moved)[is_bucket].sum())
        touched: set[int] = set()
        for at in flows[self._left[flows] <= 0]:
            part = self._parts[at]
            assert part is not None
            node = self._nodes[self._target[at]]
            if part.peer:
                node.credit = min(node.credit - self._left[at], self._settings.unit)
            self._used[at] = False
            self._parts[at] = None
            self._free.append(int(at))
            node.got(part, now + step - self._sent_at[at], now + step)
            touched.add(node.number)
        for number in sorted(touched):
            node = self._nodes[number]
            if node.done is None:
                if now < node.dies:
                    self._take(node, now + step)
            else:
                self._active.discard(number)
                self._complete.add(node.name)
                node.shown = _Shown(Holding(self._model.index.for_peers, 0))
