from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.planning.segments import Segment, Span, SpanRole
from tonnage.transfer.part_queue import Part, PartQueue


def segment(index: int, start: int, end: int, *, file: int | None = None) -> Segment:
    return Segment(index, 0, index if file is None else file, start, end, (Span(end, SpanRole.OPAQUE, -1, 0),))


def drain(queue: PartQueue, *, workers: int, slots: int) -> list[tuple[int, Part]]:
    taken: list[tuple[int, Part]] = []
    turn = 0
    while (part := queue.take(turn % workers, slots=slots, now=0.0)) is not None:
        taken.append((turn % workers, part))
        turn += 1
    return taken


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 80),
    st.integers(1, 30),
    st.one_of(st.none(), st.integers(1, 3)),
    st.data(),
)
def test_every_missing_byte_is_assigned_exactly_once(
    sizes: list[int], workers: int, slots: int, largest: int, smallest: int, max_open: int | None, data: st.DataObject
) -> None:
    segments = [segment(index, 10, 10 + size) for index, size in enumerate(sizes)]
    done = {
        index: [(start, start + data.draw(st.integers(0, 30)))]
        for index in data.draw(st.sets(st.integers(0, len(sizes) - 1)))
        if (start := data.draw(st.integers(10, 10 + sizes[index]))) >= 0
    }
    queue = PartQueue(segments, done, max_part_size=largest, min_part_size=smallest)
    queue.max_open = max_open
    wanted = {
        (item.index, at)
        for item in segments
        for at in range(item.start, item.end)
        if not any(start <= at < end for start, end in done.get(item.index, []))
    }
    assert queue.remaining == len(wanted)
    assigned = [
        (part.segment, at)
        for _, part in drain(queue, workers=workers, slots=slots)
        for at in range(part.start, part.end)
    ]
    assert len(assigned) == len(set(assigned))
    assert set(assigned) == wanted
    assert queue.remaining == 0


def test_workers_take_parts_of_their_own_segments_while_there_are_enough() -> None:
    queue = PartQueue([segment(0, 0, 100), segment(1, 0, 100)], {}, max_part_size=10, min_part_size=10)
    first_half = [(worker, part.segment) for worker, part in drain(queue, workers=2, slots=1)]
    assert set(first_half) == {(0, 0), (1, 1)}


def test_a_worker_without_a_segment_helps_with_the_largest() -> None:
    queue = PartQueue([segment(0, 0, 20), segment(1, 0, 100)], {}, max_part_size=10, min_part_size=10)
    assert queue.take(0, slots=1, now=0.0) == Part(0, 0, 10)
    assert queue.take(1, slots=1, now=0.0) == Part(1, 0, 10)
    assert queue.take(2, slots=1, now=0.0) == Part(1, 10, 20)


def test_a_requeued_part_is_returned_when_it_is_due() -> None:
    queue = PartQueue([], {}, max_part_size=10, min_part_size=1)
    late, later = Part(0, 0, 5, attempt=1), Part(0, 5, 9, attempt=2, fresh_connection=True)
    queue.requeue(later, not_before=7.0)
    queue.requeue(late, not_before=3.0)
    assert queue.remaining == 9
    assert queue.next_due() == 3.0
    assert queue.take(0, slots=1, now=2.9) is None
    assert queue.take(0, slots=1, now=3.0) == late
    assert queue.take(0, slots=1, now=8.0) == later
    assert queue.next_due() is None
    assert queue.remaining == 0


@given(
    st.lists(st.lists(st.integers(1, 400), min_size=1, max_size=5), min_size=1, max_size=8),
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(1, 80),
)
def test_with_a_limit_few_files_are_open_and_they_are_begun_in_their_order(
    files: list[list[int]], workers: int, max_open: int, largest: int
) -> None:
    segments = [(file, size) for file, sizes in enumerate(files) for size in sizes]
    queue = PartQueue(
        [segment(index, 0, size, file=file) for index, (file, size) in enumerate(segments)],
        {},
        max_part_size=largest,
        min_part_size=1,
    )
    queue.max_open = max_open
    left = [sum(sizes) for sizes in files]
    begun: list[int] = []
    for _, part in drain(queue, workers=workers, slots=workers):
        file = segments[part.segment][0]
        if file not in begun:
            begun.append(file)
        left[file] -= part.end - part.start
        assert sum(0 < left[file] < sum(files[file]) for file in range(len(files))) <= max_open
    assert begun == sorted(begun)
    assert not any(left)


@pytest.mark.parametrize(
    ("max_open", "files"),
    [
        pytest.param(None, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0], id="without readers, one worker after the other for each"),
        pytest.param(2, [0, 0, 0, 0, 1, 1, 1, 1, 0, 0], id="with readers, four for the first, then for the next"),
    ],
)
def test_workers_spread_over_the_files(max_open: int | None, files: list[int]) -> None:
    queue = PartQueue(
        [segment(index, 0, 100, file=index // 8) for index in range(24)], {}, max_part_size=10, min_part_size=10
    )
    queue.max_open = max_open
    parts = [queue.take(worker, slots=10, now=0.0) for worker in range(10)]
    assert [part.segment // 8 for part in parts if part] == files


def test_without_a_limit_each_worker_opens_a_segment_of_its_own() -> None:
    queue = PartQueue([segment(index, 0, 100) for index in range(4)], {}, max_part_size=10, min_part_size=10)
    assert [queue.take(worker, slots=4, now=0.0).segment for worker in range(4)] == [0, 1, 2, 3]  # type: ignore[union-attr]
