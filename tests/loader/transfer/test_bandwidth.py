from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tonnage.transfer.bandwidth import BandwidthLimiter

if TYPE_CHECKING:
    from random import Random


@given(st.integers(10_000, 10**9), st.lists(st.floats(0, 0.5), min_size=1, max_size=20), st.randoms())
def test_the_limiter_never_exceeds_its_rate(rate: int, steps: list[float], random: Random) -> None:
    limiter, now, taken, last = BandwidthLimiter(rate, now=0.0), 0.0, 0, 0
    for step in steps:
        now += step
        while limiter.delay(now) == 0:
            last = random.randint(limiter.max_part_size // 4, limiter.max_part_size)
            limiter.consume(last)
            taken += last
    assert taken - last <= rate * (now + 2 * BandwidthLimiter.BURST_SECONDS) + 1


def test_without_a_limit_there_is_no_delay() -> None:
    limiter = BandwidthLimiter(0, now=0.0)
    limiter.consume(10**12)
    assert limiter.delay(0.0) == 0
