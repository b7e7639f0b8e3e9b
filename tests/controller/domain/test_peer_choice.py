"""Which peers a loader may ask: few, spread evenly, stable, and only those that can serve; and places of the nodes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tonnage.contract.peers import MAX_PEERS
from tonnage_operator.domain.peers.choice import (
    FAR_PEERS,
    MAX_COMPARED,
    MAX_VISITED,
    Holder,
    NodeRing,
    choose_peers,
    find_holders,
)
from tonnage_operator.domain.peers.loading import ASKING_SECONDS, LoadingNodes

NODES = st.sets(st.text("abc01", min_size=1, max_size=4), max_size=40)


def _choose(asker: str, ring: NodeRing, complete: set[str], loading: set[str]) -> tuple[str, ...]:
    holders = find_holders(asker, ring, recorded=complete, loading=loading, is_complete=complete.__contains__)
    return choose_peers(asker, holders, MAX_PEERS)


@given(ready=NODES, complete=NODES, loading=NODES, asker=st.text("abc01", min_size=1, max_size=4))
def test_only_other_nodes_with_a_ready_peer_and_some_of_the_entry_are_named(
    ready: set[str], complete: set[str], loading: set[str], asker: str
) -> None:
    chosen = _choose(asker, NodeRing(ready), complete, loading)
    assert set(chosen) <= (complete | loading) & ready - {asker}
    assert len(chosen) == len(set(chosen)) == min(MAX_PEERS, len((complete | loading) & ready - {asker}))


@given(holders=NODES, gone=NODES, asker=st.text("abc01", min_size=1, max_size=4))
def test_a_loader_keeps_its_peers_when_others_leave(holders: set[str], gone: set[str], asker: str) -> None:
    before = _choose(asker, NodeRing(holders), holders, set())
    after = _choose(asker, NodeRing(holders), holders - gone, set())
    assert [each for each in before if each not in gone] == list(after[: len([e for e in before if e not in gone])])


@given(holders=NODES, near=NODES, asker=st.text("abc01", min_size=1, max_size=4))
def test_a_loader_gets_peers_of_its_own_zone_and_few_others_if_there_are_enough(
    holders: set[str], near: set[str], asker: str
) -> None:
    found = [Holder(node, complete=False) for node in holders]
    chosen = choose_peers(asker, found, MAX_PEERS, is_near=near.__contains__)
    others = holders - {asker}
    assert len(chosen) == len(set(chosen)) == min(MAX_PEERS, len(others))
    far = set(chosen) - near
    assert len(far) >= min(FAR_PEERS, len(others - near)), "what no node of the zone has comes from others"
    if len(others & near) >= MAX_PEERS - FAR_PEERS:
        assert len(far) <= FAR_PEERS


@given(st.lists(st.tuples(st.booleans(), st.text("ab", min_size=1, max_size=3)), max_size=60))
def test_a_ring_has_the_nodes_that_were_added_and_not_removed(changes: list[tuple[bool, str]]) -> None:
    ring, expected = NodeRing(), set[str]()
    for added, node in changes:
        (ring.add if added else ring.remove)(node)
        (expected.add if added else expected.discard)(node)
    assert sorted(ring.after("x", 1000)) == sorted(expected)
    assert len(ring) == len(expected)
    assert all(node in ring for node in expected)


def test_a_thousand_loaders_share_the_holders_evenly() -> None:
    nodes = {f"gpu-{index:04d}.example.com" for index in range(1000)}
    complete = {node for node in nodes if node < "gpu-0100"}
    ring = NodeRing(nodes)
    named = Counter(peer for node in nodes for peer in _choose(node, ring, complete, nodes - complete))
    assert len(named) > 990, "nearly each node is a peer of another"
    assert max(named[node] for node in nodes - complete) <= 24, "three times the mean"
    of_complete = sum(named[node] for node in complete) / len(complete)
    of_loading = sum(named[node] for node in nodes - complete) / 900
    assert 2 < of_complete / of_loading < 5, "nodes that have everything are named more often"


def test_the_only_complete_holder_of_a_thousand_loaders_is_named_to_few_of_them() -> None:
    nodes = {f"n{index}" for index in range(1000)}
    ring = NodeRing(nodes)
    named = Counter(peer for node in nodes for peer in _choose(node, ring, {"n7"}, nodes - {"n7"}))
    assert 5 <= named["n7"] <= 100


def test_ten_thousand_holders_cost_no_more_than_a_thousand_visits() -> None:
    nodes = [f"n{index}" for index in range(10_000)]
    visits = 0

    def is_complete(node: str) -> bool:
        nonlocal visits
        visits += 1
        return node.endswith("0")

    holders = find_holders("n5", NodeRing(nodes), recorded=set(nodes), loading=(), is_complete=is_complete)
    assert visits <= MAX_VISITED
    assert MAX_PEERS < len(holders) <= MAX_COMPARED
    assert {Holder(node, complete=True) for node, _ in holders} == set(holders)


def test_what_one_of_many_nodes_has_is_at_most_six_steps_away_from_all() -> None:
    nodes = [f"gpu-{index:05d}" for index in range(2_500)]
    ring, loading = NodeRing(nodes), set(nodes)
    asked_by: dict[str, list[str]] = {}
    for node in nodes:
        for peer in _choose(node, ring, set(), loading):
            asked_by.setdefault(peer, []).append(node)
    reached, last, steps = {nodes[0]}, {nodes[0]}, 0
    while last:
        last = {node for peer in last for node in asked_by.get(peer, ())} - reached
        reached |= last
        steps += bool(last)
    assert len(reached) > 0.998 * len(nodes)
    assert steps <= 6


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans(), st.floats(0, 15)), max_size=60))
def test_places_have_no_gap_and_are_those_of_loading_nodes_that_serve(asked: list[tuple[str, bool, float]]) -> None:
    loading, now, last = LoadingNodes(), 0.0, dict[str, tuple[float, bool]]()
    for node, serves, pause in asked:
        now += pause
        loading.note(node, now, serves=serves)
        last[node] = now, serves
        alive = {each: serving for each, (at, serving) in last.items() if now - at < ASKING_SECONDS}
        assert set(loading.nodes(now)) == set(alive)
        places = {each: loading.place(each) for each in alive if alive[each]}
        assert sorted(place for place in places.values() if place is not None) == list(range(len(places)))
        assert loading.places == len(places)
        assert all(loading.place(each) is None for each in last if not alive.get(each))


def test_a_node_keeps_its_place_when_others_come_and_only_the_last_one_moves_when_one_leaves() -> None:
    loading = LoadingNodes()
    for number in range(10):
        loading.note(f"n{number}", 0.0, serves=True)
    for number in range(10):
        if number != 4:
            loading.note(f"n{number}", 15.0, serves=True)
    assert len(loading.nodes(ASKING_SECONDS)) == 9
    assert [loading.place(f"n{number}") for number in range(10)] == [0, 1, 2, 3, None, 5, 6, 7, 8, 4]
