"""Waiting before another try: it grows, ends somewhere, and never undercuts what a server asks for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tonnage.source.waiting import FIRST_WAIT, LONGEST_RETRY_AFTER, backoff

JITTER = st.floats(0, 1, exclude_max=True)
LONGEST = 15.0


@given(st.integers(1, 60), JITTER)
def test_waiting_grows_with_failures_and_is_never_endless(failures: int, jitter: float) -> None:
    waiting = backoff(failures, longest=LONGEST, jitter=jitter)
    assert FIRST_WAIT / 2 <= waiting <= LONGEST
    assert backoff(failures + 1, longest=LONGEST, jitter=jitter) >= waiting


@given(st.integers(1, 20), st.floats(0, 10_000), JITTER)
def test_what_the_server_asks_for_is_waited_but_not_for_hours(failures: int, asked: float, jitter: float) -> None:
    waiting = backoff(failures, longest=LONGEST, retry_after=asked, jitter=jitter)
    assert min(asked, LONGEST_RETRY_AFTER) <= waiting <= LONGEST_RETRY_AFTER + LONGEST


def test_a_fleet_does_not_come_back_at_the_same_moment() -> None:
    assert len({backoff(5, longest=LONGEST) for _ in range(20)}) > 1
