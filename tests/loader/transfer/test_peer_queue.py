"""What a load fetches next, from which peer or from the source, with nodes that are played by the test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tonnage.contract.peers import AWAIT_HEADERS, READ_HEADERS
from tonnage.planning.segments import NOT_WRITTEN, Segment, Span, SpanRole
from tonnage.transfer.part_queue import Part
from tonnage.transfer.peer_index import UnitIndex
from tonnage.transfer.peer_ledger import MAX_SLOTS_PER_PEER, PeerFault, PeerLedger
from tonnage.transfer.peer_queue import (
    AWAIT_SECONDS,
    BEGIN_SECONDS,
    IDLE_SECONDS,
    MAX_TRIES,
    MIN_SOURCE_SLOTS,
    NAMED_SECONDS,
    READING_SLOTS,
    SMALL_SLOTS,
    Holding,
    PeerQueue,
)
from tonnage.transfer.peer_units import SMALL_BYTES, make_units
from tonnage.transfer.source_share import LATE_SECONDS, SourceShare

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from tonnage.transfer.peer_units import Unit

TENSOR = 1 << 20
UNIT = 256 << 10


class Load:
    """A load of some tensors, or of tensors of some sizes, as one node sees it."""

    def __init__(self, tensors: int = 12, node: str = "node-a", sizes: Sequence[int] = ()) -> None:
        spans: list[Span] = []
        end = offset = 0
        for number, size in enumerate(sizes or [TENSOR] * tensors):
            spans += [Span(end + 200, SpanRole.HEADER, number, NOT_WRITTEN)]
            end += 200 + size
            spans += [Span(end, SpanRole.DATA, number, offset)]
            offset += size
        segment = Segment(0, 0, 0, 0, end, tuple(spans))
        self.units: list[Unit] = make_units([segment], {}, believable={0}, size=UNIT)
        self.index = UnitIndex(self.units, [("model", offset)])
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

    def fail(self, part: Part, end: int, fault: PeerFault, now: float) -> None:
        """Lets a peer fail after it has sent a part up to ``end``."""
        self.queue.finished(part, end=end, now=now)
        self.ledger.failed(part.peer, fault, now=now)
        self.queue.return_to_peers(part, end)

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


def test_a_peer_of_another_zone_is_asked_only_for_what_no_near_one_has() -> None:
    load = Load(tensors=64)
    half = (1 << len(load.units) // 2) - 1
    holdings = {"far": Holding(load.index.for_peers), "near": Holding(load.index.for_peers & half)}
    load.queue.update(holdings, holdings, now=0.0, far=["far"])
    taken = {"far": 0, "near": 0}
    for step in range(40):
        for part in load.take(step / 10):
            load.queue.finished(part, end=part.end, now=step / 10)
            if part.peer:
                taken[part.peer] |= load.bits(part)
                load.ledger.succeeded(part.peer, size=part.end - part.start, seconds=0.1)
    assert taken["near"]
    assert taken["far"] & ~half
    assert not taken["far"] & half


@pytest.mark.parametrize("fault", [PeerFault.STALL, PeerFault.WRONG_BYTES])
def test_what_a_near_peer_does_not_send_comes_from_another_zone(fault: PeerFault) -> None:
    load = Load(tensors=4)
    holdings = dict.fromkeys(["far", "near"], Holding(load.index.for_peers))
    load.queue.update(holdings, holdings, now=0.0, far=["far"])
    got, now = 0, 0.0
    while load.queue.remaining:
        now += 0.6
        assert now < 60
        for part in load.take(now):
            if part.peer == "near":
                load.fail(part, part.start, fault, now)
                continue
            got |= load.bits(part)
            load.queue.finished(part, end=part.end, now=now)
            if part.peer:
                load.ledger.succeeded(part.peer, size=part.end - part.start, seconds=0.1)
    assert got == load.everything


def test_a_unit_that_peers_fail_to_send_comes_from_the_source_in_the_end() -> None:
    load = Load(tensors=1)
    load.queue.update({"node-b": Holding(load.everything)}, ["node-b"], now=0.0)
    sources = 0
    for number in range(200):
        now = 100.0 * number
        for part in load.take(now):
            if part.peer:
                load.fail(part, part.start, PeerFault.BUSY, now)
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
    load.fail(part, part.start + 1000, PeerFault.BUSY, 0.1)
    assert load.queue.remaining == left + part.end - part.start - 1000
    for other in others:
        load.ledger.succeeded(other.peer, size=UNIT, seconds=1.0)
    rest = next(each for each in load.take(1.0) if each.start == part.start + 1000)
    assert (rest.end, rest.shift) == (part.end, part.shift)


def test_nothing_is_left_of_a_unit_that_a_peer_has_sent_and_failed_after() -> None:
    load = Load(tensors=1)
    load.queue.update({"node-b": Holding(load.everything)}, ["node-b"], now=0.0)
    part = next(part for part in load.take() if part.peer)
    before = load.queue.remaining
    load.fail(part, part.end, PeerFault.ERROR, 0.0)
    assert load.queue.remaining == before
    again = load.take(50.0)
    assert not any(each.unit == part.unit and each.peer for each in again)
    assert not any(load.bits(each) & load.bits(part) for each in again)


@given(st.integers(1, 4 * TENSOR), st.booleans())
def test_what_the_source_fails_to_send_comes_from_peers_that_have_all_of_it(received: int, has: bool) -> None:
    load = Load(tensors=4)
    part = load.take(slots=1)[0]  # a header and the beginning of a tensor
    holding = Holding(load.index.for_peers if has else 0)
    load.queue.update({"node-b": holding}, ["node-b"], now=0.0)
    start = min(part.start + received, part.end - 1)
    load.queue.finished(part, end=start, now=0.0)
    before = load.queue.remaining
    given_back = load.queue.give_back(part, start, now=0.0)
    header = 200 if load.bits(part) & load.index.small else 0
    assert given_back == (has and start - part.start >= header), "a header is for the source alone"
    assert load.queue.remaining - before == (part.end - start if given_back else 0)
    if given_back:
        parts = [each for step in range(9) for each in load.take(step * 100.0)]
        assert sum(max(0, min(each.end, part.end) - max(each.start, start)) for each in parts) == part.end - start


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


def test_of_a_large_fleet_a_node_fetches_its_own_share_and_leaves_the_rest_to_peers_it_does_not_know() -> None:
    taken = 0
    for place in range(20):
        load = Load(tensors=40, node=f"node-{place}")
        load.queue.update({"peer": Holding()}, ["peer"], now=0.0, share=SourceShare(20, place))
        own, now = 0, 0.0
        while now < LATE_SECONDS:
            for part in load.take(now):
                own |= load.bits(part) & load.index.for_peers
                load.queue.finished(part, end=part.end, now=now)
            now += 0.1
        assert not own & taken, "two nodes fetch the same"
        taken |= own
    assert taken == load.index.for_peers, "and together everything"


def test_a_node_that_knows_all_others_does_not_wait_for_them() -> None:
    load = Load(tensors=40)
    peers = {f"node-{number}": Holding() for number in range(3)}
    load.queue.update(peers, peers, now=0.0, share=SourceShare(4, 0))
    got = 0
    for part in iter(lambda: load.queue.take(0, slots=8, now=BEGIN_SECONDS), None):
        got |= load.bits(part)
        load.queue.finished(part, end=part.end, now=BEGIN_SECONDS)
    assert got == load.everything


@pytest.mark.parametrize("peer", ["has nothing", "shows that it fetches it", "has it but does not answer"])
def test_what_its_owner_does_not_bring_comes_from_the_source_after_a_wait(peer: str) -> None:
    load = Load(tensors=40)
    everything = load.index.for_peers
    holding = {
        "has nothing": Holding(),
        "shows that it fetches it": Holding(0, everything),
        "has it but does not answer": Holding(everything),
    }[peer]
    load.queue.update({"peer": holding}, ["peer"], now=0.0, share=SourceShare(1000, 7))
    got, now = 0, 0.0
    while load.queue.remaining:
        now += 0.1
        assert now < 60, "for ten times, each four seconds at most"
        for part in load.take(now):
            if part.peer:
                load.fail(part, part.start, PeerFault.STALL, now)
                continue
            got |= load.bits(part)
            load.queue.finished(part, end=part.end, now=now)
    assert got == load.everything


def test_a_node_of_a_large_fleet_that_finds_no_peer_is_alone() -> None:
    load = Load(tensors=40)
    load.queue.update({}, ["gone"], now=0.0, share=SourceShare(1000, 7))
    got, now = 0, 0.0
    while load.queue.remaining:
        now += 0.1
        assert now < NAMED_SECONDS + 5
        for part in load.take(now):
            got |= load.bits(part)
            load.queue.finished(part, end=part.end, now=now)
    assert got == load.everything


def test_a_header_comes_before_others_when_bytes_of_its_tensor_are_on_their_way_from_a_peer() -> None:
    load = Load(tensors=200)
    first, last = load.units[0], load.units[-5]  # the headers of the first and of the last tensor
    assert (first.size, last.size) == (200, 200)
    load.queue.update({"peer": Holding(load.index.for_peers & -(1 << (len(load.units) - 4)))}, ["peer"], now=0.0)
    headers = [part.start for part in load.take(0.0) if part.end - part.start == 200]
    assert last.start not in headers, "not yet: the peer was asked after them"
    for start in headers:
        load.queue.finished(Part(0, start, start + 200), end=start + 200, now=0.1)
    assert last.start in [part.start for part in load.take(0.1)]


def test_a_node_that_reads_headers_for_others_asks_for_all_of_them_before_anything_else() -> None:
    load = Load(tensors=100)
    load.queue.update({}, [], now=0.0, headers=READ_HEADERS)
    parts = load.take(slots=4)
    assert len(parts) == READING_SLOTS + MIN_SOURCE_SLOTS, "and the rest has its own connections"
    headers = 0
    while not load.queue.has_read_headers:
        for part in parts:
            headers |= load.bits(part) & load.index.small
            load.queue.finished(part, end=part.end, now=0.1)
        parts = load.take(0.1, slots=1)
    assert headers == load.index.small


def test_a_header_that_a_node_needs_of_the_source_comes_with_the_tensor_behind_it() -> None:
    load = Load(sizes=[TENSOR, 1000, 2000, TENSOR, 3000, TENSOR])
    load.queue.update({"peer": Holding()}, ["peer"], now=0.0, share=SourceShare(20, 0), headers=AWAIT_HEADERS)
    got = requests = 0
    for step in range(400):
        now = step / 10
        for part in load.take(now, slots=4):
            got |= load.bits(part)
            requests += 1
            load.queue.finished(part, end=part.end, now=now)
    assert got == load.everything
    assert requests <= 3 * TENSOR // UNIT + 2


@given(
    st.lists(st.sampled_from([1, 300, 20_000, SMALL_BYTES - 1, SMALL_BYTES, TENSOR]), min_size=1, max_size=30),
    st.sampled_from(["", READ_HEADERS, AWAIT_HEADERS]),
    st.floats(0, 20),
    st.booleans(),
    st.sampled_from([None, SourceShare(40, 3)]),
)
def test_whenever_headers_come_from_a_peer_all_the_rest_arrives_once(
    sizes: list[int], task: str, come: float, has: bool, share: SourceShare | None
) -> None:
    load = Load(sizes=sizes)
    holding = Holding(load.index.for_peers if has else 0)
    load.queue.update({"peer": holding}, ["peer"], now=0.0, share=share, headers=task)
    got, now, headers_of_source, known = 0, 0.0, 0, False
    flying: list[Part] = []
    while load.queue.remaining or flying:
        now += 0.1
        assert now < 120
        for part in flying:
            assert not got & load.bits(part), "twice"
            got |= load.bits(part)
            load.queue.finished(part, end=part.end, now=now)
            if part.peer:
                load.ledger.succeeded(part.peer, size=part.end - part.start, seconds=0.1)
            elif load.bits(part) & load.index.small:
                headers_of_source += 1
        if come <= now and not known and task != READ_HEADERS:
            known = True
            numbers = [number for number, _ in load.queue.short_units]
            load.queue.drop(numbers)
            got |= sum(1 << number for number in numbers)
            load.queue.update({"peer": holding}, ["peer"], now=now, share=share)
        flying = load.take(now, slots=4)
    assert got == load.everything
    if task == AWAIT_HEADERS and has and come < AWAIT_SECONDS:
        assert headers_of_source == 0, "none was needed"


@given(
    st.integers(12, 24),
    st.sets(st.integers(0, 23), max_size=6),
    st.randoms(use_true_random=False),
)
@settings(max_examples=6, deadline=None)
def test_a_large_fleet_ends_though_owners_die_and_the_source_sends_few_models(
    nodes: int, dying: set[int], random: Random
) -> None:
    names = [f"node-{number}" for number in range(nodes)]
    dead = {name for number, name in enumerate(names) if number in dying}
    loads = {name: Load(12, name) for name in names}
    peers = {name: random.sample([other for other in names if other != name], 8) for name in names}
    got = dict.fromkeys(names, 0)
    flying: dict[str, list[Part]] = {name: [] for name in names}
    from_source, now = 0, 0.0
    while any(loads[name].queue.remaining or flying[name] for name in names if name not in dead):
        now += 0.25
        assert now < 60
        holdings = {}
        for name, load in loads.items():
            for part in flying[name]:
                if part.peer:
                    load.queue.finished(part, end=part.end, now=now)
                    load.ledger.succeeded(part.peer, size=part.end - part.start, seconds=0.25)
                else:
                    from_source += part.end - part.start
                    load.queue.finished(part, end=part.end, now=now)
                got[name] |= load.bits(part)
            flying[name] = []
            pending = sum(1 << load.numbers[unit.start] for unit in load.queue.pending)
            holdings[name] = Holding(got[name] & load.index.for_peers, pending)
        for place, name in enumerate(names):
            if name in dead:
                continue  # counted, but it brings nothing, and shows that forever
            known = {other: holdings[other] for other in peers[name]}
            loads[name].queue.update(known, known, now=now, share=SourceShare(nodes, place))
            flying[name] = loads[name].take(now, slots=8)
    size = sum(unit.size for unit in loads[names[0]].units)
    assert all(got[name] == loads[name].everything for name in names if name not in dead)
    headers = nodes * 200 * 12
    assert from_source <= (2 + len(dead)) * size + headers
