"""Waiting before another try: it grows, ends somewhere, and never undercuts what a server asks for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tonnage.source.backoff import INITIAL_BACKOFF_SECONDS, MAX_RETRY_AFTER_SECONDS, backoff_seconds

JITTER = st.floats(0, 1, exclude_max=True)
LONGEST = 15.0


@given(st.integers(1, 60), JITTER)
def test_waiting_grows_with_failures_and_is_never_endless(failures: int, jitter: float) -> None:
    waiting = backoff_seconds(failures, maximum=LONGEST, jitter=jitter)
    assert INITIAL_BACKOFF_SECONDS / 2 <= waiting <= LONGEST
    assert backoff_seconds(failures + 1, maximum=LONGEST, jitter=jitter) >= waiting


@given(st.integers(1, 20), st.floats(0, 10_000), JITTER)
def test_what_the_server_asks_for_is_waited_but_not_for_hours(failures: int, asked: float, jitter: float) -> None:
    waiting = backoff_seconds(failures, maximum=LONGEST, retry_after=asked, jitter=jitter)
    assert min(asked, MAX_RETRY_AFTER_SECONDS) <= waiting <= MAX_RETRY_AFTER_SECONDS + LONGEST


def test_jitter_spreads_retries_of_many_clients() -> None:
    assert len({backoff_seconds(5, maximum=LONGEST) for _ in range(20)}) > 1
