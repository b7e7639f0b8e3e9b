from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.planning.segments import NOT_WRITTEN, Segment, Span, SpanRole, next_part_size, subtract_ranges

spans = st.lists(
    st.tuples(st.integers(0, 50), st.sampled_from(list(SpanRole)), st.booleans()),
    min_size=1,
    max_size=12,
)


def build(sizes: list[tuple[int, SpanRole, bool]], start: int) -> Segment:
    found, at = [], start
    for number, (size, role, written) in enumerate(sizes):
        at += size
        found.append(Span(at, role, number, 1000 + at - size if written else NOT_WRITTEN))
    return Segment(0, 0, 0, start, at, tuple(found))


@given(spans, st.integers(0, 100), st.data())
def test_pieces_cover_a_part_without_gaps_and_keep_their_targets(
    sizes: list[tuple[int, SpanRole, bool]], start: int, data: st.DataObject
) -> None:
    segment = build(sizes, start)
    first = data.draw(st.integers(segment.start, segment.end))
    last = data.draw(st.integers(first, segment.end))
    pieces = segment.pieces(first, last)
    at = first
    for piece in pieces:
        assert piece.start == at < piece.end
        at = piece.end
        if piece.target_offset != NOT_WRITTEN:
            assert piece.target_offset == 1000 + piece.start
    assert at == last


def test_spans_that_do_not_end_with_their_segment_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="spans of segment 3"):
        Segment(3, 0, 0, 0, 10, (Span(9, SpanRole.DATA, 0, 0),))


ranges = st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: (min(pair), max(pair)))


@given(ranges, st.lists(ranges, max_size=8))
def test_remaining_and_subtracted_ranges_are_the_whole(whole: tuple[int, int], taken: list[tuple[int, int]]) -> None:
    left = subtract_ranges(whole, taken)
    covered = {at for start, end in taken for at in range(start, end)}
    assert [at for start, end in left for at in range(start, end)] == [at for at in range(*whole) if at not in covered]
    assert all(start < end for start, end in left)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(left))


@given(st.integers(0, 10**12), st.integers(1, 500), st.integers(1, 10**8), st.integers(1, 10**7))
def test_parts_stay_between_the_smallest_and_the_largest_size(
    remaining: int, slots: int, largest: int, smallest: int
) -> None:
    size = next_part_size(remaining, connections=slots, max_size=largest, min_size=smallest)
    assert min(smallest, largest) <= size <= largest
