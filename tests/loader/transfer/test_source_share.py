"""Who of a large fleet fetches what from the source: each point has one owner, and others only after a wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tonnage.transfer.source_share import (
    MAX_WAIT_SECONDS,
    RECEIVES_SECONDS,
    RING_BITS,
    WAIT_SECONDS,
    Reach,
    SourceShare,
    ring_points,
    turns,
)

POINTS = st.lists(st.integers(0, 2**RING_BITS - 1), max_size=20)


@given(count=st.integers(1, 60), points=POINTS)
def test_each_point_has_one_owner_and_one_node_at_each_distance_before_it(count: int, points: list[int]) -> None:
    found = [turns(SourceShare(count, place), "", points) for place in range(count)]
    for at in range(len(points)):
        assert sorted(each[at].distance for each in found) == list(range(count))
        (owner,) = (place for place in range(count) if not found[place][at].distance)
        assert {each[at].begins for each in found} == {owner / count}, "all know when its turn is"


@given(st.integers(1, 400))
def test_the_nodes_are_about_evenly_apart_and_stay_where_they_are_when_more_come(count: int) -> None:
    ring = ring_points(count)
    assert set(ring) < set(ring_points(count + 1))
    gaps = [after - before for before, after in zip(ring, [*ring[1:], 2**RING_BITS], strict=True)]
    assert max(gaps) <= 2 * min(gaps)


@given(count=st.integers(1, 60), more=st.integers(0, 60), points=POINTS)
def test_what_a_node_owns_it_owned_before_more_nodes_came(count: int, more: int, points: list[int]) -> None:
    before = turns(SourceShare(count, count - 1), "", points)
    after = turns(SourceShare(count + more, count - 1), "", points)
    assert all(not one.distance for one, other in zip(before, after, strict=True) if not other.distance)


@given(count=st.integers(1, 60), name=st.text(max_size=8), points=POINTS)
def test_a_node_without_a_place_owns_nothing_but_helps(count: int, name: str, points: list[int]) -> None:
    assert all(1 <= each.distance <= count for each in turns(SourceShare(count), name, points))


class Node:
    """A node's reach, with a clock."""

    def __init__(self) -> None:
        self.reach = Reach()
        self.now = 0.0

    def do(self, seconds: float, *, waits: bool = False, receives: bool = False) -> int:
        """Has the node do something for some time; returns how often its reach has changed."""
        changes, end = 0, self.now + seconds
        while self.now < end:
            self.now += 0.1
            changes += self.reach.look(self.now, waits=waits, receives=receives)
        return changes


def test_the_reach_doubles_while_peers_send_nothing_until_it_is_everything() -> None:
    node = Node()
    reach = node.reach
    assert node.do(WAIT_SECONDS - 0.3, waits=True) == 0
    assert node.do(0.5, waits=True) == 1
    assert node.do(9 * MAX_WAIT_SECONDS + 1, waits=True) == 9
    assert reach.arcs == 1024, "a fleet of a thousand nodes, after 40 seconds"


def test_the_reach_is_small_again_when_peers_send_and_grows_though_one_sends_little_now_and_then() -> None:
    node = Node()
    reach = node.reach
    node.do(WAIT_SECONDS + 0.3, waits=True)
    assert not reach.trusts_pending
    assert node.do(RECEIVES_SECONDS - 0.3, receives=True) == 0
    assert node.do(0.6, receives=True) == 1
    assert (reach.arcs, reach.trusts_pending, reach.trusts_peers) == (1, True, True)
    for _ in range(20):
        node.do(0.8, waits=True)
        node.do(0.2, receives=True)
    assert reach.arcs > 4
    assert not reach.trusts_peers


def test_a_node_to_which_the_source_sends_does_not_wait() -> None:
    node = Node()
    reach = node.reach
    assert node.do(100.0) == 0
    assert reach.arcs == 1
