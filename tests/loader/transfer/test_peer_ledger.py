"""Which peers a load still asks, from how they answered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.transfer.peer_ledger import (
    BUSY_SECONDS,
    ENOUGH_SLOTS,
    MAX_BUSY_SECONDS,
    MAX_REQUEST_SECONDS,
    MAX_RESTS,
    MAX_SLOTS_PER_PEER,
    MAX_STRIKES,
    MIN_REQUEST_SECONDS,
    REST_SECONDS,
    PeerFault,
    PeerLedger,
    slots_per_peer,
)

NODE = "node-b"
DROPPING = [PeerFault.OTHER_ENTRY, PeerFault.WRONG_BYTES]


def fail(ledger: PeerLedger, fault: PeerFault, now: float) -> bool:
    ledger.sent(NODE)
    return ledger.failed(NODE, fault, now=now)


@pytest.mark.parametrize("fault", DROPPING)
def test_a_peer_with_other_or_wrong_bytes_is_dropped_at_once_and_for_good(fault: PeerFault) -> None:
    ledger = PeerLedger()
    assert fail(ledger, fault, 0.0)
    assert not fail(ledger, fault, 1.0), "it was dropped before"
    assert ledger.is_dropped(NODE)
    assert not ledger.may_ask(NODE, now=1e9)


@pytest.mark.parametrize("fault", [PeerFault.STALL, PeerFault.ERROR, PeerFault.DENIED])
def test_a_peer_that_fails_again_and_again_rests_and_is_dropped_in_the_end(fault: PeerFault) -> None:
    ledger = PeerLedger()
    now = 0.0
    for rest in range(MAX_RESTS):
        for strike in range(MAX_STRIKES):
            now += 2.0
            assert ledger.may_ask(NODE, now=now)
            assert fail(ledger, fault, now) == (rest == MAX_RESTS - 1 and strike == MAX_STRIKES - 1)
        assert not ledger.may_ask(NODE, now=now + REST_SECONDS - 0.1)
        now += REST_SECONDS
    assert ledger.is_dropped(NODE)


@pytest.mark.parametrize("fault", [PeerFault.STALL, PeerFault.ERROR, PeerFault.DENIED])
def test_requests_that_fail_together_count_once(fault: PeerFault) -> None:
    ledger = PeerLedger()
    for _ in range(MAX_SLOTS_PER_PEER):
        ledger.sent(NODE)
    for _ in range(MAX_SLOTS_PER_PEER):
        assert not ledger.failed(NODE, fault, now=5.0)
    assert not ledger.is_resting(NODE, now=5.0)
    assert ledger.may_ask(NODE, now=6.0)


def test_one_answer_in_full_makes_up_for_a_failure() -> None:
    ledger = PeerLedger()
    for now in range(20):
        fail(ledger, PeerFault.STALL, float(now))
        ledger.sent(NODE)
        ledger.succeeded(NODE, size=100, seconds=0.1)
    assert ledger.may_ask(NODE, now=20.0)


def test_a_full_peer_is_asked_again_after_a_growing_delay_and_never_dropped() -> None:
    ledger = PeerLedger()
    now, delays = 0.0, []
    for _ in range(12):
        assert not fail(ledger, PeerFault.BUSY, now)
        began = now
        while not ledger.may_ask(NODE, now=now):
            now += 0.25
        delays.append(now - began)
    assert (delays[0], delays[-1]) == (BUSY_SECONDS, MAX_BUSY_SECONDS)
    assert delays == sorted(delays)
    assert not ledger.is_resting(NODE, now=now)


def test_a_peer_whose_files_have_moved_is_asked_again_soon() -> None:
    ledger = PeerLedger()
    for now in range(30):
        assert not fail(ledger, PeerFault.MOVED, float(now))
    assert ledger.may_ask(NODE, now=31.0)


def test_requests_at_one_peer_are_few_and_one_after_a_failure() -> None:
    ledger = PeerLedger()
    for _ in range(MAX_SLOTS_PER_PEER):
        assert ledger.may_ask(NODE, now=0.0)
        ledger.sent(NODE)
    assert not ledger.may_ask(NODE, now=0.0)
    ledger.failed(NODE, PeerFault.ERROR, now=0.0)
    assert not ledger.may_ask(NODE, now=0.0)
    for _ in range(MAX_SLOTS_PER_PEER - 1):
        ledger.failed(NODE, PeerFault.BUSY, now=-100.0)
    assert ledger.may_ask(NODE, now=1.0)


@given(st.integers(0, 10_000))
def test_many_peers_are_asked_for_less_each(peers: int) -> None:
    assert 2 <= slots_per_peer(peers) <= MAX_SLOTS_PER_PEER
    assert slots_per_peer(peers) * peers <= max(ENOUGH_SLOTS, 2 * peers)


@given(st.lists(st.tuples(st.integers(1, 1 << 26), st.floats(1e-6, 1e4))), st.integers(0, 1 << 40))
def test_a_request_never_waits_for_longer_than_its_limit(answers: list[tuple[int, float]], size: int) -> None:
    ledger = PeerLedger()
    for count, seconds in answers:
        ledger.sent(NODE)
        ledger.succeeded(NODE, size=count, seconds=seconds)
    assert MIN_REQUEST_SECONDS <= ledger.request_seconds(size) <= MAX_REQUEST_SECONDS


def test_a_peer_in_doubt_is_left_alone_until_its_bytes_turn_out_to_be_right() -> None:
    ledger = PeerLedger()
    ledger.suspend(NODE, until=60.0)
    assert ledger.is_resting(NODE, now=1.0)
    ledger.resume(NODE, now=2.0)
    assert ledger.may_ask(NODE, now=2.0)


@given(st.lists(st.tuples(st.sampled_from(list(PeerFault)), st.floats(0, 5)), max_size=60))
def test_whatever_a_peer_does_requests_in_flight_are_never_counted_below_none(
    faults: list[tuple[PeerFault, float]],
) -> None:
    ledger, now = PeerLedger(), 0.0
    for fault, pause in faults:
        now += pause
        ledger.failed(NODE, fault, now=now)
        assert ledger.in_flight(NODE) == 0
