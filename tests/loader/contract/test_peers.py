"""Tickets and passes of peers, and the controller's answers, from any sender."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.contract.peers import (
    CLOCK_LEEWAY_SECONDS,
    GRANT_SECONDS,
    MAX_PEERS,
    NO_PLACE,
    GrantRejected,
    Peer,
    PeersAnswer,
    Purpose,
    decode_peers_answer,
    encode_peers_answer,
    new_grant,
    sign_grant,
    verify_grant,
)
from tonnage.errors import InvalidPlan

KEY = bytes(range(32))
NOW = 1_800_000_000.0
GRANT = new_grant(medium="memory", key="team/r-0123", caller="uid", now=NOW)


def test_a_signed_grant_is_accepted_for_its_purpose_and_by_any_valid_key() -> None:
    text = sign_grant(GRANT, Purpose.TICKET, KEY)
    assert verify_grant(text, Purpose.TICKET, [bytes(32), KEY], now=NOW) == GRANT
    assert GRANT.path == "memory/team/r-0123"


@pytest.mark.parametrize(
    ("shift", "accepted"),
    [
        (0.0, True),
        (GRANT_SECONDS + CLOCK_LEEWAY_SECONDS - 1, True),
        (GRANT_SECONDS + CLOCK_LEEWAY_SECONDS + 1, False),
        (-CLOCK_LEEWAY_SECONDS + 1, True),
        (-CLOCK_LEEWAY_SECONDS - 1, False),
    ],
)
def test_a_grant_counts_only_while_the_clocks_agree_within_the_leeway(shift: float, accepted: bool) -> None:
    text = sign_grant(GRANT, Purpose.TICKET, KEY)
    if accepted:
        assert verify_grant(text, Purpose.TICKET, [KEY], now=NOW + shift) == GRANT
    else:
        with pytest.raises(GrantRejected, match="clock"):
            verify_grant(text, Purpose.TICKET, [KEY], now=NOW + shift)


def test_a_ticket_is_no_pass_and_another_key_signs_nothing() -> None:
    ticket = sign_grant(GRANT, Purpose.TICKET, KEY)
    with pytest.raises(GrantRejected):
        verify_grant(ticket, Purpose.PASS, [KEY], now=NOW)
    with pytest.raises(GrantRejected, match="signature"):
        verify_grant("pass" + ticket.removeprefix("ticket"), Purpose.PASS, [KEY], now=NOW)
    with pytest.raises(GrantRejected, match="signature"):
        verify_grant(ticket, Purpose.TICKET, [bytes(32)], now=NOW)
    with pytest.raises(ValueError, match="too short"):
        sign_grant(GRANT, Purpose.PASS, b"short")


@pytest.mark.parametrize("key", ["../other", "a/b/c", "/etc", "", "A", "team/../x", "team/"])
def test_a_grant_never_names_a_path_outside_of_the_entries(key: str) -> None:
    with pytest.raises(ValueError, match="regex"):
        new_grant(medium="memory", key=key, caller="uid", now=NOW)


@given(st.text(max_size=200) | st.builds(lambda tail: "ticket." + tail, st.text(max_size=3000)))
def test_foreign_text_is_rejected_and_never_raises_anything_else(text: str) -> None:
    with pytest.raises(GrantRejected):
        verify_grant(text, Purpose.TICKET, [KEY], now=NOW)


@given(st.integers(0, 10_000), st.data())
def test_changing_any_character_of_a_grant_makes_it_invalid(place: int, data: st.DataObject) -> None:
    text = sign_grant(GRANT, Purpose.PASS, KEY)
    at = place % len(text)
    other = data.draw(st.characters(codec="ascii").filter(lambda each: each != text[at]))
    with pytest.raises(GrantRejected):
        verify_grant(text[:at] + other + text[at + 1 :], Purpose.PASS, [KEY], now=NOW)


def test_of_ten_thousand_peers_the_first_eight_are_taken() -> None:
    answer = PeersAnswer(peers=tuple(Peer(node=f"n{at}", address=f"10.0.0.1:{at + 1}") for at in range(10_000)))
    assert decode_peers_answer(encode_peers_answer(answer)).peers == answer.peers[:MAX_PEERS]


@pytest.mark.parametrize("address", ["host:1", "10.0.0.1", "10.0.0.1:1\r\nx: y", "[::1]:1/path", "10.0.0.1:123456"])
def test_an_address_is_nothing_but_an_ip_address_and_a_port(address: str) -> None:
    data = msgspec.json.encode({"peers": [{"node": "n", "address": address}]})
    with pytest.raises(InvalidPlan):
        decode_peers_answer(data)


@pytest.mark.parametrize(
    "text", ['{"loading": -1}', '{"loading": 1e9}', '{"place": -2}', '{"loading": "8"}', '{"place": 1.5}']
)
def test_a_number_of_nodes_that_can_not_be_is_an_invalid_plan(text: str) -> None:
    with pytest.raises(InvalidPlan):
        decode_peers_answer(text.encode())


def test_a_peer_of_a_controller_that_knows_no_zones_is_near() -> None:
    answer = decode_peers_answer(b'{"peers": [{"node": "a", "address": "10.0.0.1:9443"}]}')
    assert answer.peers[0].near


def test_answers_of_older_and_newer_releases_are_understood() -> None:
    assert decode_peers_answer(b'{"ticket": "t"}') == PeersAnswer(ticket="t", loading=0, place=NO_PLACE)
    newer = b'{"loading": 1000, "place": 7, "zone": {"of": "a later release"}}'
    assert decode_peers_answer(newer) == PeersAnswer(loading=1000, place=7)


@given(st.binary(max_size=300))
def test_an_answer_of_anything_else_is_an_invalid_plan(data: bytes) -> None:
    with contextlib.suppress(InvalidPlan):
        decode_peers_answer(data)
