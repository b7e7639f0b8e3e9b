"""Linear partitioning, compared with trying every division."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tonnage.planning.partition import linear_partition


def _largest(weights: list[int], ranges: list[tuple[int, int]]) -> int:
    return max(sum(weights[start:end]) for start, end in ranges)


def _smallest_possible(weights: list[int], count: int) -> int:
    size = len(weights)
    return min(
        _largest(weights, list(itertools.pairwise((0, *cuts, size))))
        for cuts in itertools.combinations(range(1, size), count - 1)
    )


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.one_of(st.integers(0, 9), st.integers(0, 1 << 60)), min_size=1, max_size=8),
    st.integers(1, 10),
)
def test_the_largest_sum_is_as_small_as_possible(weights: list[int], count: int) -> None:
    ranges = linear_partition(weights, count)
    expected = min(count, len(weights))
    assert len(ranges) == expected
    assert _largest(weights, ranges) == _smallest_possible(weights, expected)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 1 << 40), max_size=300), st.integers(1, 400))
def test_runs_cover_everything_once_in_order_and_none_is_empty(weights: list[int], count: int) -> None:
    ranges = linear_partition(weights, count)
    assert [index for start, end in ranges for index in range(start, end)] == list(range(len(weights)))
    assert all(start < end for start, end in ranges)
    assert len(ranges) == min(count, len(weights))


def test_no_weights_make_no_runs() -> None:
    assert linear_partition([], 4) == []


def test_one_huge_tensor_has_a_run_of_its_own() -> None:
    assert linear_partition([1, 1, 100, 1, 1], 3) == [(0, 2), (2, 3), (3, 5)]


def test_weights_of_zero_are_divided_too() -> None:
    ranges = linear_partition([0] * 8, 4)
    assert len(ranges) == 4


def test_runs_are_about_equal_where_possible() -> None:
    sizes = [end - start for start, end in linear_partition([1] * 10, 4)]
    assert sorted(sizes) == [2, 2, 3, 3]


def test_a_large_index_is_partitioned_quickly() -> None:
    weights = [(number * 7919) % 1_000_003 for number in range(20_000)]
    start = time.process_time()
    linear_partition(weights, 64)
    assert time.process_time() - start < 0.2


@pytest.mark.parametrize(("weights", "count"), [([1], 0), ([1], -1), ([3, -1], 2)])
def test_invalid_arguments_are_rejected(weights: list[int], count: int) -> None:
    with pytest.raises(ValueError, match="runs"):
        linear_partition(weights, count)
