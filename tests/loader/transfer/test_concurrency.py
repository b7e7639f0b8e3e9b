from __future__ import annotations

from tonnage.contract import Limits
from tonnage.transfer.concurrency import MAX_CONNECTIONS, MAX_WORKERS, ConnectionTuner, choose_concurrency

GIB = 1 << 30


def test_a_small_model_gets_one_process_and_a_large_one_all_cores() -> None:
    assert choose_concurrency(Limits(), size=1000, cores=16).workers == 1
    assert choose_concurrency(Limits(), size=100 * GIB, cores=16).workers == 16
    assert choose_concurrency(Limits(), size=100 * GIB, cores=400).workers == MAX_WORKERS


def test_limits_of_the_user_take_precedence() -> None:
    chosen = choose_concurrency(Limits(workers=3, connections=5, part_size=77), size=GIB, cores=16)
    assert (chosen.workers, chosen.connections, chosen.fixed, chosen.part_size) == (3, 5, True, 77)
    assert choose_concurrency(Limits(workers=8, connections=2), size=GIB, cores=16).workers == 2
    assert not choose_concurrency(Limits(), size=GIB, cores=2).fixed
    assert choose_concurrency(Limits(), size=GIB, cores=2).connections == MAX_CONNECTIONS


def test_the_tuner_adds_connections_while_the_rate_increases_and_then_settles() -> None:
    tuner = ConnectionTuner(initial=2, maximum=100)
    while not tuner.settled:
        tuner.update(min(tuner.connections, 20) * 90e6)
    assert 16 <= tuner.connections <= 32
    settled = tuner.connections
    tuner.update(1.0)
    assert tuner.connections == settled


def test_the_tuner_returns_to_the_previous_number_when_more_does_not_help() -> None:
    tuner = ConnectionTuner(initial=4, maximum=100)
    tuner.update(1e9)
    assert tuner.connections == 8
    tuner.update(1.1e9)
    assert tuner.connections == 4
    assert tuner.settled


def test_the_tuner_stays_within_its_bounds() -> None:
    assert ConnectionTuner(initial=4, maximum=2).connections == 2
    tuner = ConnectionTuner(initial=1, maximum=3)
    rate = 1.0
    while not tuner.settled:
        rate *= 2
        tuner.update(rate)
    assert tuner.connections == 3
