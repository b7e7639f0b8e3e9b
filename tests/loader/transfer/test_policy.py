from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tonnage.contract import Limits
from tonnage.transfer.policy import (
    MAX_CONNECTIONS,
    MAX_WORKERS,
    BandwidthLimiter,
    ConnectionTuner,
    choose_concurrency,
)

if TYPE_CHECKING:
    from random import Random

GIB = 1 << 30


def test_a_small_model_gets_one_process_and_a_large_one_all_cores() -> None:
    assert choose_concurrency(Limits(), size=1000, cores=16).workers == 1
    assert choose_concurrency(Limits(), size=100 * GIB, cores=16).workers == 16
    assert choose_concurrency(Limits(), size=100 * GIB, cores=400).workers == MAX_WORKERS


def test_what_the_user_wants_wins() -> None:
    width = choose_concurrency(Limits(workers=3, connections=5, part_size=77), size=GIB, cores=16)
    assert (width.workers, width.connections, width.fixed, width.part_size) == (3, 5, True, 77)
    assert choose_concurrency(Limits(workers=8, connections=2), size=GIB, cores=16).workers == 2
    assert not choose_concurrency(Limits(), size=GIB, cores=2).fixed
    assert choose_concurrency(Limits(), size=GIB, cores=2).connections == MAX_CONNECTIONS


def test_the_tuner_widens_while_the_rate_follows_and_then_stays() -> None:
    tuner = ConnectionTuner(initial=2, maximum=100)
    while not tuner.settled:
        tuner.update(min(tuner.connections, 20) * 90e6)
    assert 16 <= tuner.connections <= 32
    settled = tuner.connections
    tuner.update(1.0)
    assert tuner.connections == settled


def test_the_tuner_goes_back_when_more_does_not_help() -> None:
    tuner = ConnectionTuner(initial=4, maximum=100)
    tuner.update(1e9)
    assert tuner.connections == 8
    tuner.update(1.1e9)
    assert tuner.connections == 4
    assert tuner.settled


def test_the_tuner_never_leaves_its_bounds() -> None:
    assert ConnectionTuner(initial=4, maximum=2).connections == 2
    tuner = ConnectionTuner(initial=1, maximum=3)
    rate = 1.0
    while not tuner.settled:
        rate *= 2
        tuner.update(rate)
    assert tuner.connections == 3


@given(st.integers(10_000, 10**9), st.lists(st.floats(0, 0.5), min_size=1, max_size=20), st.randoms())
def test_a_pacer_never_lets_more_through_than_its_rate(rate: int, steps: list[float], random: Random) -> None:
    pacer, now, taken, last = BandwidthLimiter(rate, now=0.0), 0.0, 0, 0
    for step in steps:
        now += step
        while pacer.delay(now) == 0:
            last = random.randint(pacer.max_part_size // 4, pacer.max_part_size)
            pacer.consume(last)
            taken += last
    assert taken - last <= rate * (now + 2 * BandwidthLimiter.BURST_SECONDS) + 1


def test_without_a_limit_nothing_waits() -> None:
    pacer = BandwidthLimiter(0, now=0.0)
    pacer.consume(10**12)
    assert pacer.delay(0.0) == 0
