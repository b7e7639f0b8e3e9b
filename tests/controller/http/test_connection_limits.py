"""Which connection is closed when a server has too many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage_operator.connection_limits import (
    Connection,
    ConnectionLimits,
    ConnectionRefused,
    largest_body,
    make_room,
)

LIMITS = ConnectionLimits(connections=6, per_peer=3, body_bytes=100)
CONNECTIONS = st.lists(
    st.builds(
        Connection,
        st.sampled_from("abcd"),
        st.none() | st.integers(0, 9).map(float),
        st.booleans(),
        st.integers(0, 80),
    ),
    max_size=8,
)


@given(connections=CONNECTIONS, peer=st.sampled_from("abcd"))
def test_a_request_that_is_being_handled_is_never_interrupted(connections: list[Connection], peer: str) -> None:
    try:
        displaced = make_room(connections, peer, LIMITS)
    except ConnectionRefused:
        return
    assert displaced is None or displaced.waiting_since is not None


@given(connections=CONNECTIONS, peer=st.sampled_from("abcd"))
def test_both_limits_hold_after_each_new_connection(connections: list[Connection], peer: str) -> None:
    # Only what the function itself let in can be open.
    admitted: list[Connection] = []
    for each in [*connections, Connection(peer, 10.0)]:
        try:
            displaced = make_room(admitted, each.peer, LIMITS)
        except ConnectionRefused:
            continue
        admitted = [*(other for other in admitted if other is not displaced), each]
        assert len(admitted) <= LIMITS.connections
        assert sum(other.peer == each.peer for other in admitted) <= LIMITS.per_peer


def test_a_peer_at_its_limit_loses_its_own_connection_that_waits_the_longest() -> None:
    others = [Connection("b", 0.0), Connection("b", 0.0)]
    own = [Connection("a", 3.0), Connection("a", 1.0), Connection("a", 2.0)]
    assert make_room([*others, *own], "a", LIMITS) is own[1]


def test_a_peer_with_few_connections_displaces_one_of_the_peer_with_the_most() -> None:
    few = [Connection("a", 0.0), Connection("b", 0.0), Connection("b", 0.0)]
    many = [Connection("c", 5.0), Connection("c", 4.0), Connection("c", 6.0)]
    assert make_room([*few, *many], "d", LIMITS) is many[1]


def test_connections_without_any_request_are_closed_first() -> None:
    kept = Connection("a", 0.0, has_sent_request=True)
    silent = Connection("a", 1.0)
    assert make_room([kept, silent, kept], "a", LIMITS) is silent


def test_a_new_connection_is_refused_while_all_others_handle_requests() -> None:
    with pytest.raises(ConnectionRefused):
        make_room([Connection(peer, None) for peer in "aabbcc"], "d", LIMITS)


@given(connections=CONNECTIONS)
def test_bodies_beyond_the_limit_cost_the_connection_that_sent_the_most(connections: list[Connection]) -> None:
    largest = largest_body(connections, LIMITS)
    total = sum(each.body_bytes for each in connections)
    assert (largest is not None) == (total > LIMITS.body_bytes)
    if largest:
        assert largest.body_bytes == max(each.body_bytes for each in connections)
