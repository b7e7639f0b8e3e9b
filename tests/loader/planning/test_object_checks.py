"""Where the ranges of a checksum are in files, and spans that end with them."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tonnage.planning.object_checks import Extent, covers, cut_segment, find_extents
from tonnage.planning.segments import NO_TENSOR, NOT_WRITTEN, Segment, Span, SpanRole, grow_ranges


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    start = draw(st.integers(0, 50))
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    spans, at = [], start
    for number, length in enumerate(lengths):
        at += length
        target = draw(st.sampled_from([NOT_WRITTEN, 1000 * number]))
        spans.append(Span(at, SpanRole.DATA, NO_TENSOR, target))
    return Segment(0, 0, 0, start, at, tuple(spans))


@given(segment=segments(), borders=st.lists(st.integers(0, 300), unique=True), data=st.data())
def test_a_segment_that_is_cut_puts_every_byte_where_it_was(
    segment: Segment, borders: list[int], data: st.DataObject
) -> None:
    cut = cut_segment(segment, sorted(borders))
    first = data.draw(st.integers(segment.start, segment.end - 1))
    last = data.draw(st.integers(first + 1, segment.end))
    assert _places(cut, first, last) == _places(segment, first, last)
    ends = {span.end for span in cut.spans}
    assert ends >= {border for border in borders if segment.start < border < segment.end}
    assert not any(
        piece.start < border < piece.end for border in borders for piece in cut.pieces(segment.start, segment.end)
    )


def _places(segment: Segment, first: int, last: int) -> dict[int, int]:
    return {
        at: piece.target_offset if piece.target_offset == NOT_WRITTEN else piece.target_offset + at - piece.start
        for piece in segment.pieces(first, last)
        for at in range(piece.start, piece.end)
    }


@given(segment=segments(), pieces=st.lists(st.integers(1, 40), max_size=6), data=st.data())
def test_extents_are_the_bytes_of_a_range_in_files_or_captured(
    segment: Segment, pieces: list[int], data: st.DataObject
) -> None:
    """Captured bytes arrive in pieces that end anywhere. The bytes of the object are their offsets."""
    captured: dict[int, bytes] = {}
    at = segment.start
    for length in [*pieces, segment.end]:
        if at < segment.end:
            for piece in segment.pieces(at, min(at + length, segment.end)):
                if piece.target_offset == NOT_WRITTEN:
                    captured[piece.start] = bytes(range(piece.start, piece.end))
        at += length
    file = {offset: at for at, offset in _places(segment, segment.start, segment.end).items()}
    first = data.draw(st.integers(segment.start, segment.end - 1))
    last = data.draw(st.integers(first + 1, segment.end))
    found: list[int] = []
    for each in find_extents([segment], first, last, captured):
        if isinstance(each, bytes):
            found += each
        else:
            found += [file[each.offset + more] for more in range(each.length)]
    assert found == list(range(first, last))


def test_extents_of_adjacent_spans_are_joined() -> None:
    spans = (Span(10, SpanRole.OPAQUE, NO_TENSOR, 0), Span(20, SpanRole.OPAQUE, NO_TENSOR, 10))
    two = [Segment(0, 0, 3, 0, 20, spans), Segment(1, 0, 4, 20, 30, (Span(30, SpanRole.OPAQUE, NO_TENSOR, 7),))]
    assert find_extents(two, 5, 25, {}) == [Extent(3, 5, 15), Extent(4, 7, 5)]
    assert covers(two, 5, 30)
    assert not covers(two, 5, 31)
    assert not covers(two[1:], 19, 30)
    assert not covers([], 0, 1)
    assert covers([], 1, 1)


@given(
    ranges=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 20), max_size=8),
)
def test_ranges_grow_to_whole_units(ranges: list[tuple[int, int]], sizes: list[int]) -> None:
    wanted = [(start, start + length) for start, length in ranges]
    ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
    units = list(zip([0, *ends], ends, strict=False))
    grown = grow_ranges(wanted, units)
    covered = {at for start, end in grown for at in range(start, end)}
    assert covered >= {at for start, end in wanted for at in range(start, end)}
    for start, end in units:
        assert covered.isdisjoint(range(start, end)) or covered.issuperset(range(start, end))
    assert all(first[1] < second[0] for first, second in pairwise(grown))
