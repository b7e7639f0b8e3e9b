"""How a load is divided into what comes from one peer or from the source at a time, and how units are found again."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tonnage.planning.segments import NOT_WRITTEN, Segment, Span, SpanRole, subtract_ranges
from tonnage.transfer.peer_index import UnitIndex
from tonnage.transfer.peer_units import MAX_UNITS, SMALL_BYTES, SOURCE_ONLY, make_units, unit_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.planning.segments import ByteRange
    from tonnage.transfer.peer_units import Unit

UNIT = 256 << 10
ROLES = [SpanRole.HEADER, SpanRole.DATA, SpanRole.OPAQUE, SpanRole.TAIL]


@st.composite
def segments(draw: st.DrawFn) -> list[Segment]:
    """Segments of one or two objects, with spans of any role and size, in one or several files."""
    found: list[Segment] = []
    for number in range(draw(st.integers(1, 3))):
        end = 0
        spans: list[Span] = []
        offsets = {0: 0, 1: 0}
        for _ in range(draw(st.integers(1, 8))):
            size = draw(st.integers(1, 3 * UNIT) | st.integers(1, 300))
            role = draw(st.sampled_from(ROLES))
            file = draw(st.sampled_from([0, 0, 0, 1]))
            written = role in {SpanRole.DATA, SpanRole.OPAQUE} and draw(st.booleans()) is not None
            end += size
            spans.append(Span(end, role, -1, offsets[file] if written else NOT_WRITTEN, 2 * number + file))
            offsets[file] += size if written else 0
        found.append(Segment(number, number % 2, 2 * number, 0, end, tuple(spans)))
    return found


@given(segments(), st.data())
def test_units_are_all_that_is_to_be_fetched_once_and_those_of_peers_are_one_range_of_a_file(
    all_segments: list[Segment], data: st.DataObject
) -> None:
    done: dict[int, list[ByteRange]] = {}
    for segment in all_segments:
        places = st.integers(0, segment.end)
        done[segment.index] = [(min(pair), max(pair)) for pair in data.draw(st.lists(st.tuples(places, places)))]
    units = make_units(all_segments, done, believable={0}, size=UNIT)
    for segment in all_segments:
        left = subtract_ranges((segment.start, segment.end), done[segment.index])
        own = sorted((unit.start, unit.end) for unit in units if unit.segment == segment.index)
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(own))
        assert subtract_ranges((segment.start, segment.end), own) == subtract_ranges((segment.start, segment.end), left)
    for unit in units:
        assert 0 < unit.size <= UNIT
        segment = all_segments[unit.segment]
        if unit.file == SOURCE_ONLY:
            continue
        assert segment.object_index == 0, "of an object that can't be verified"
        at = unit.offset
        for piece in segment.pieces(unit.start, unit.end):
            assert (piece.file_index, piece.target_offset) == (unit.file, at)
            at += piece.end - piece.start


@given(st.integers(0, 10**15), st.integers(1 << 18, 1 << 26))
def test_a_load_has_some_thousand_units_at_most(size: int, part_size: int) -> None:
    found = unit_size(size, part_size)
    assert found >= min(part_size, 1 << 20)
    assert -(-size // found) <= MAX_UNITS


def tensors(count: int, size: int) -> tuple[list[Unit], UnitIndex]:
    """Returns the units of an object of equal tensors."""
    spans: list[Span] = []
    end = 0
    for number in range(count):
        spans += [Span(end + 200, SpanRole.HEADER, number, NOT_WRITTEN)]
        end += 200 + size
        spans += [Span(end, SpanRole.DATA, number, number * size)]
    segment = Segment(0, 0, 0, 0, end, tuple(spans))
    units = make_units([segment], {}, believable={0}, size=UNIT)
    return units, UnitIndex(units, [("a", count * size)])


@given(segments(), st.data())
def test_ranges_cover_the_units_that_are_within_one_of_them(all_segments: list[Segment], data: st.DataObject) -> None:
    units = make_units(all_segments, {}, believable={0, 1}, size=UNIT)
    files = [(f"file-{number}", 10 * UNIT) for number in range(8)]
    index = UnitIndex(units, files)
    shown: dict[str, tuple[int, Sequence[ByteRange]]] = {}
    for path, size in data.draw(st.lists(st.sampled_from(files), unique=True)):
        ends = sorted(data.draw(st.sets(st.integers(0, 9 * UNIT), max_size=8)))
        pairs = list(zip(ends[::2], ends[1::2], strict=False))
        shown[path] = data.draw(st.sampled_from([size, size, size + 1])), pairs
    shown["unknown"] = 1, [(0, 1)]
    expected = 0
    for number, unit in enumerate(units):
        if unit.file == SOURCE_ONLY:
            continue
        path, size = files[unit.file]
        found_size, ranges = shown.get(path, (size, []))
        if found_size == size and any(start <= unit.offset and unit.offset + unit.size <= end for start, end in ranges):
            expected |= 1 << number
    assert index.covered(shown) == expected


@given(st.integers(1, 60), st.integers(SMALL_BYTES, 6 * UNIT), st.integers(1, 9))
def test_nodes_that_know_each_other_begin_with_different_extents_and_each_gets_to_all(
    count: int, size: int, nodes: int
) -> None:
    units, index = tensors(count, size)
    everything = sum(extent.units for extent in index.extents)
    assert everything | index.small == (1 << len(units)) - 1
    names = {f"node-{number}" for number in range(nodes)}
    firsts: list[int] = []
    for name in names:
        order = index.source_order(name, names)
        assert sum(extent.units for extent in order) == everything
        # The extents that belong to this node are those that come last at all others that are to help with them.
        firsts.append(order[0].units)
    owned = [index.source_order(name, names)[: count // (2 * nodes)] for name in names]
    if count >= 16 * nodes:
        assert len(set(firsts)) == nodes
        extents = [extent.units for found in owned for extent in found]
        assert len(extents) - len(set(extents)) <= len(extents) // 2


def test_an_order_is_the_same_in_each_process() -> None:
    _, index = tensors(6, UNIT)
    places = {extent.units: number for number, extent in enumerate(index.extents)}
    order = [places[extent.units] for extent in index.source_order("node-a", {"node-b", "node-c"})]
    assert order == [5, 1, 2, 3, 0, 4]
