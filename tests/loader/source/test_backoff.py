"""The backoff grows up to a limit and is never shorter than the server's Retry-After."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tonnage.source.backoff import INITIAL_BACKOFF_SECONDS, MAX_RETRY_AFTER_SECONDS, backoff_seconds

JITTER = st.floats(0, 1, exclude_max=True)
LONGEST = 15.0


@given(st.integers(1, 60), JITTER)
def test_the_backoff_grows_with_failures_up_to_a_limit(failures: int, jitter: float) -> None:
    seconds = backoff_seconds(failures, maximum=LONGEST, jitter=jitter)
    assert INITIAL_BACKOFF_SECONDS / 2 <= seconds <= LONGEST
    assert backoff_seconds(failures + 1, maximum=LONGEST, jitter=jitter) >= seconds


@given(st.integers(1, 20), st.floats(0, 10_000), JITTER)
def test_retry_after_is_respected_up_to_a_limit(failures: int, retry_after: float, jitter: float) -> None:
    seconds = backoff_seconds(failures, maximum=LONGEST, retry_after=retry_after, jitter=jitter)
    assert min(retry_after, MAX_RETRY_AFTER_SECONDS) <= seconds <= MAX_RETRY_AFTER_SECONDS + LONGEST


def test_jitter_spreads_retries_of_many_clients() -> None:
    assert len({backoff_seconds(5, maximum=LONGEST) for _ in range(20)}) > 1
