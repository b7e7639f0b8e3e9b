"""What a load shows to peers, and who sent what before it is verified."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.blueprints import source_object
from support.models import make_tensors, to_tensors_file
from tonnage.contract import Layout
from tonnage.planning.blueprint import EntryShape
from tonnage.planning.blueprint_builder import build_blueprint
from tonnage.transfer.finished_ranges import FinishedRanges, add_range, remove_range
from tonnage.transfer.peer_origin import PeerOrigin, PeerRange, Settled, split_at

if TYPE_CHECKING:
    from pathlib import Path

    from tonnage.planning.blueprint import Blueprint
    from tonnage.planning.segments import ByteRange

PLACES = st.integers(0, 60)
RANGES = st.tuples(PLACES, PLACES).map(lambda pair: (min(pair), max(pair) + 1))


@given(st.lists(st.tuples(st.booleans(), RANGES), max_size=40))
def test_ranges_that_are_added_and_removed_are_the_bytes_in_order_without_touching(
    steps: list[tuple[bool, ByteRange]],
) -> None:
    ranges: list[ByteRange] = []
    expected: set[int] = set()
    for adds, (start, end) in steps:
        if adds:
            add_range(ranges, start, end)
            expected |= set(range(start, end))
        else:
            remove_range(ranges, start, end)
            expected -= set(range(start, end))
        assert all(one[1] < two[0] for one, two in itertools.pairwise(ranges)) or not adds
        assert {at for first, last in ranges for at in range(first, last)} == expected
        assert sum(last - first for first, last in ranges) == len(expected)


@pytest.fixture(scope="module")
def blueprint(tmp_path_factory: pytest.TempPathFactory) -> Blueprint:
    path: Path = tmp_path_factory.mktemp("ranges") / "model.tensors"
    path.write_bytes(to_tensors_file(make_tensors(count=6, rows=8)))
    return build_blueprint([source_object(path)], EntryShape(layout=Layout.SAFETENSORS, segment_size=64 << 10))


def shown_bytes(finished: FinishedRanges) -> int:
    return sum(end - start for ranges in finished.take().values() for start, end in ranges)


def test_what_comes_from_the_source_is_shown_before_its_tensor_is_complete(blueprint: Blueprint) -> None:
    finished = FinishedRanges(blueprint, checked=())
    segment = blueprint.segments[0]
    pieces = segment.pieces(segment.start, segment.end)
    data = next(piece for piece in pieces if piece.target_offset >= 0 and piece.end - piece.start > 2)
    middle = (data.start + data.end) // 2
    finished.add_received(segment.index, data.start, middle)
    assert finished.changed
    path = blueprint.files[data.file_index].path
    assert finished.take() == {path: [(data.target_offset, data.target_offset + middle - data.start)]}
    finished.discard(0, data.start, data.end)
    assert finished.take() == {}


def test_what_comes_from_a_peer_is_shown_when_its_tensor_is_verified(blueprint: Blueprint) -> None:
    finished = FinishedRanges(blueprint, checked=())
    total = 0
    for place in blueprint.placements:
        tensors = blueprint.objects[place.object_index].tensors_index
        assert tensors is not None
        finished.add_tensor(place.object_index, place.tensor_index)
        total += tensors.tensors[place.tensor_index].length
    assert shown_bytes(finished) == total


def test_a_tensor_of_an_object_that_is_verified_as_a_whole_is_not_shown_before_that(blueprint: Blueprint) -> None:
    finished = FinishedRanges(blueprint, checked={0})
    for place in blueprint.placements:
        finished.add_tensor(place.object_index, place.tensor_index)
    assert finished.take() == {}
    finished.add_object(0)
    assert shown_bytes(finished) > 0


@given(st.lists(st.tuples(RANGES, st.sampled_from("abc")), max_size=20), RANGES)
def test_the_ranges_of_peers_within_a_range_are_those_that_overlap_it(
    sent: list[tuple[ByteRange, str]], looked: ByteRange
) -> None:
    origin = PeerOrigin()
    taken: list[PeerRange] = []
    for (start, end), node in sent:
        if all(end <= other.start or other.end <= start for other in taken):
            taken.append(PeerRange(start, end, node, (start,)))
            origin.add(0, taken[-1])
    found = origin.within(0, *looked)
    assert sorted(found) == sorted(each for each in taken if each.start < looked[1] and looked[0] < each.end)
    assert origin.within(1, *looked) == []
    origin.doubt(0, found)
    assert origin.within(0, *looked) == []
    for each in found:
        assert origin.settle(0, each.start, each.end, [each.start]) == Settled(each.node, was_right=True)
        assert origin.settle(0, each.start, each.end, [each.start]) is None


def test_a_peer_whose_bytes_differ_from_those_of_the_source_is_found() -> None:
    origin = PeerOrigin()
    sent = PeerRange(10, 20, "node-b", (1, 2))
    origin.add(3, sent)
    origin.doubt(3, [sent])
    assert origin.settle(3, 10, 19, [1, 2]) is None, "not the same range"
    assert origin.settle(3, 10, 20, [1, 3]) == Settled("node-b", was_right=False)


@given(RANGES, st.lists(RANGES, max_size=6), st.integers(1, 20))
def test_a_range_is_refetched_with_the_borders_of_what_peers_sent_and_nothing_is_left_out(
    whole: ByteRange, sent: list[ByteRange], size: int
) -> None:
    ranges: list[PeerRange] = []
    for start, end in sorted(sent):
        if not ranges or ranges[-1].end <= start:
            ranges.append(PeerRange(start, end, "node-b", ()))
    parts = split_at(whole, ranges, size)
    assert [at for start, end in parts for at in range(start, end)] == list(range(*whole))
    within = [(each.start, each.end) for each in ranges if whole[0] <= each.start and each.end <= whole[1]]
    assert set(within) <= set(parts)
