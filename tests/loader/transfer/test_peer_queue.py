"""What a load fetches next, from which peer or from the source, with nodes that are played by the test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from tonnage.planning.segments import NOT_WRITTEN, Segment, Span, SpanRole
from tonnage.transfer.peer_index import UnitIndex
from tonnage.transfer.peer_ledger import MAX_SLOTS_PER_PEER, PeerFault, PeerLedger
from tonnage.transfer.peer_queue import (
    BEGIN_SECONDS,
    IDLE_SECONDS,
    MAX_TRIES,
    MIN_SOURCE_SLOTS,
    SMALL_SLOTS,
    Holding,
    PeerQueue,
)
from tonnage.transfer.peer_units import make_units

if TYPE_CHECKING:
    from tonnage.transfer.part_queue import Part
    from tonnage.transfer.peer_units import Unit

TENSOR = 1 << 20
UNIT = 256 << 10


class Load:
    """A load of some tensors, as one node sees it."""

    def __init__(self, tensors: int = 12, node: str = "node-a") -> None:
        spans: list[Span] = []
        end = 0
        for number in range(tensors):
            spans += [Span(end + 200, SpanRole.HEADER, number, NOT_WRITTEN)]
            end += 200 + TENSOR
            spans += [Span(end, SpanRole.DATA, number, number * TENSOR)]
        segment = Segment(0, 0, 0, 0, end, tuple(spans))
        self.units: list[Unit] = make_units([segment], {}, believable={0}, size=UNIT)
        self.index = UnitIndex(self.units, [("model", tensors * TENSOR)])
        self.ledger = PeerLedger()
        self.queue = PeerQueue(self.units, self.index, node=node, ledger=self.ledger)
        self.numbers = {unit.start: number for number, unit in enumerate(self.units)}
        self.everything = (1 << len(self.units)) - 1

    def take(self, now: float = 0.0, slots: int = 8) -> list[Part]:
        """Returns all parts that may be fetched now."""
        found = []
        while (part := self.queue.take(0, slots=slots, now=now)) is not None:
            found.append(part)
        return found

    def bits(self, part: Part) -> int:
        """Returns the units of a part."""
        return sum(1 << n for n, unit in enumerate(self.units) if part.start <= unit.start and unit.end <= part.end)


def test_without_peers_everything_comes_from_the_source_once() -> None:
    load = Load()
    got = 0
    while load.queue.remaining:
        for part in load.take():
            assert not part.peer
            assert not got & load.bits(part)
            got |= load.bits(part)
            load.queue.finished(part, end=part.end, now=0.0)
    assert got == load.everything


def test_what_a_peer_has_is_taken_from_it_and_headers_come_from_the_source() -> None:
    load = Load()
    load.queue.update({"node-b": Holding(load.index.for_peers)}, ["node-b"], now=0.0)
    parts = load.take()
    assert len([part for part in parts if part.peer]) == MAX_SLOTS_PER_PEER
    others = [part for part in parts if not part.peer]
    assert len(others) == SMALL_SLOTS
    assert all(part.end - part.start == 200 for part in others)


def test_what_a_peer_is_fetching_is_left_to_it_and_the_rest_of_a_extent_is_announced() -> None:
    load = Load(tensors=64)
    pending = load.index.extents[0].units | load.index.extents[1].units
    load.queue.update({"node-b": Holding(0, pending)}, ["node-b"], now=0.0)
    assert len([part for part in load.take() if part.end - part.start > 200]) == MIN_SOURCE_SLOTS
    parts = [part for part in load.take(BEGIN_SECONDS) if part.end - part.start > 200]
    assert len(parts) + MIN_SOURCE_SLOTS == 4  # half of the eight connections, as two nodes load
    taken = sum(load.bits(part) for part in parts)
    assert not taken & pending
    shown = {unit.start for unit in load.queue.pending}
    assert {part.start for part in parts} <= shown


def test_of_many_nodes_each_uses_few_connections_to_the_source_but_never_none() -> None:
    load = Load(tensors=64)
    holdings = {f"node-{number}": Holding(0, 0) for number in range(8)}
    load.queue.update(holdings, holdings, now=0.0)
    assert len([part for part in load.take(slots=8) if part.end - part.start > 200]) == MIN_SOURCE_SLOTS


def test_a_rare_unit_is_taken_before_those_that_many_have() -> None:
    load = Load()
    rare = load.index.extents[7].units
    holdings = {f"node-{number}": Holding(load.index.for_peers & ~rare) for number in range(3)}
    load.queue.update({**holdings, "node-z": Holding(load.index.for_peers)}, [*holdings, "node-z"], now=0.0)
    first = next(part for part in load.take() if part.peer == "node-z")
    assert load.bits(first) & rare


def test_a_unit_that_peers_fail_to_send_comes_from_the_source_in_the_end() -> None:
    load = Load(tensors=1)
    load.queue.update({"node-b": Holding(load.everything)}, ["node-b"], now=0.0)
    sources = 0
    for number in range(200):
        now = 100.0 * number
        for part in load.take(now):
            if part.peer:
                load.queue.finished(part, end=part.start, now=now)
                load.ledger.failed(part.peer, PeerFault.BUSY, now=now)
                load.queue.return_to_peers(part, part.start)
                continue
            sources |= load.bits(part)
            load.queue.finished(part, end=part.end, now=now)
        if not load.queue.remaining:
            break
    assert sources == load.everything
    assert number <= MAX_TRIES * len(load.units)


def test_what_a_peer_sent_of_a_unit_is_kept() -> None:
    load = Load(tensors=1)
    load.queue.update({"node-b": Holding(load.everything)}, ["node-b"], now=0.0)
    part, *others = (part for part in load.take() if part.peer)
    left = load.queue.remaining
    load.queue.finished(part, end=part.start + 1000, now=0.1)
    load.ledger.failed("node-b", PeerFault.BUSY, now=0.1)
    load.queue.return_to_peers(part, part.start + 1000)
    assert load.queue.remaining == left + part.end - part.start - 1000
    for other in others:
        load.ledger.succeeded(other.peer, size=UNIT, seconds=1.0)
    rest = next(each for each in load.take(1.0) if each.start == part.start + 1000)
    assert (rest.end, rest.shift) == (part.end, part.shift)


def test_while_peers_answer_the_source_is_not_asked_for_what_they_have() -> None:
    load = Load(tensors=200)
    load.queue.update({"node-b": Holding(load.index.for_peers)}, ["node-b"], now=0.0)
    now, from_source = 0.0, 0
    flying = load.take(now)
    while load.queue.remaining:
        now += 0.25
        for part in flying:
            load.queue.finished(part, end=part.end, now=now)
            if part.peer:
                load.ledger.succeeded(part.peer, size=part.end - part.start, seconds=0.25)
            elif part.end - part.start > 200:
                from_source += part.end - part.start
        flying = load.take(now)
    # One unit now and then shows how fast the source is.
    assert from_source <= UNIT * (2 + now / 5)


def test_if_peers_no_longer_answer_the_source_is_asked_for_what_they_have() -> None:
    load = Load(tensors=4)
    load.queue.update({"node-b": Holding(load.index.for_peers)}, ["node-b"], now=0.0)
    waiting = [part for part in load.take(0.0) if part.peer]
    assert waiting
    got = 0
    for step in range(1, 400):
        now = step / 10
        for part in load.take(now):
            assert not part.peer
            got |= load.bits(part)
            load.queue.finished(part, end=part.end, now=now)
    assert load.queue.remaining == 0
    assert now > IDLE_SECONDS


def test_a_source_that_is_much_faster_than_a_peer_is_used_too() -> None:
    load = Load(tensors=40)
    load.queue.update({"node-b": Holding(load.index.for_peers)}, ["node-b"], now=0.0)
    now, sources = 0.0, 0
    flying = [(part, now) for part in load.take(now)]
    while load.queue.remaining and now < 60:
        now += 0.05
        still = []
        for part, since in flying:
            if part.peer and now - since < 0.8:
                still.append((part, since))
                continue
            load.queue.finished(part, end=part.end, now=now)
            if part.peer:
                load.ledger.succeeded(part.peer, size=part.end - part.start, seconds=now - since)
            elif part.end - part.start > 200:
                sources += 1
        flying = [*still, *((part, now) for part in load.take(now))]
    assert sources > 20


@given(st.integers(1, 6), st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_nodes_that_exchange_units_all_end_and_the_source_sends_little_more_than_once(nodes: int, tensors: int) -> None:
    loads = {f"node-{number}": Load(tensors, f"node-{number}") for number in range(nodes)}
    got = dict.fromkeys(loads, 0)
    flying: dict[str, list[Part]] = {name: [] for name in loads}
    from_source, now = 0, 0.0
    while any(load.queue.remaining or flying[name] for name, load in loads.items()):
        now += 0.1
        assert now < 300
        for name, load in loads.items():
            for part in flying[name]:
                assert not got[name] & load.bits(part), "twice"
                got[name] |= load.bits(part)
                load.queue.finished(part, end=part.end, now=now)
                if part.peer:
                    load.ledger.succeeded(part.peer, size=part.end - part.start, seconds=0.1)
                else:
                    from_source += part.end - part.start
            flying[name] = []
        holdings = {}
        for name, load in loads.items():
            pending = sum(1 << load.numbers[unit.start] for unit in load.queue.pending)
            holdings[name] = Holding(got[name] & load.index.for_peers, pending)
        for name, load in loads.items():
            others = {other: holding for other, holding in holdings.items() if other != name}
            load.queue.update(others, others, now=now)
            flying[name] = load.take(now, slots=2)
    size = sum(unit.size for unit in loads["node-0"].units)
    assert all(found == load.everything for found, load in zip(got.values(), loads.values(), strict=True))
    # Headers come from the source at every node, and so does what two nodes began at the same time.
    assert from_source <= 2 * size + nodes * 200 * tensors + nodes * UNIT
