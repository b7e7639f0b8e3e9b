"""The simulated fleet of ``benchmarks/fleet``, at a small size: the loader's own decisions spread a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.repository import ROOT

if TYPE_CHECKING:
    from types import ModuleType

MIB = 1 << 20


@pytest.fixture
def simulated_fleet(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "fleet")
    module: ModuleType = pytest.importorskip("simulated_fleet")
    return module


def settings(module: ModuleType, **changed: Any) -> Any:
    values = {"tensors": (64 * MIB, 16 * MIB) * 8, "nodes": 12, "link": 100e6, "bucket": 150e6, "unit": 8 * MIB}
    return module.Settings(**{**values, "step": 0.05, "start_delay": 0.5, **changed})


@pytest.mark.parametrize("first_loads", [0, 2])
def test_a_fleet_has_the_model_soon_after_the_limit_and_the_same_at_each_run(
    simulated_fleet: ModuleType, first_loads: int
) -> None:
    given = settings(simulated_fleet, first_loads=first_loads)
    outcome = simulated_fleet.Fleet(given).run()
    assert len(outcome.seconds) == 12
    assert min(outcome.seconds) >= given.size / given.link
    assert max(outcome.seconds) < 3 * given.limit
    assert given.size <= outcome.bucket_bytes < 2 * given.size
    assert simulated_fleet.Fleet(given).run() == outcome


def test_a_fleet_of_which_loaders_die_has_the_model_some_seconds_later(simulated_fleet: ModuleType) -> None:
    given = settings(simulated_fleet, nodes=24, dying=0.2)
    outcome = simulated_fleet.Fleet(given).run()
    assert 12 < len(outcome.seconds) < 24
    assert max(outcome.seconds) < 3 * given.limit + 15
    assert outcome.bucket_bytes < 3 * given.size


@pytest.mark.parametrize("shares_headers", [True, False])
def test_a_bucket_that_answers_few_requests_delays_a_fleet_whose_nodes_all_read_headers(
    simulated_fleet: ModuleType, shares_headers: bool
) -> None:
    tensors = (2 * MIB,) * 200
    given = settings(simulated_fleet, tensors=tensors, nodes=24, requests=500, shares_headers=shares_headers)
    outcome = simulated_fleet.Fleet(given).run()
    if shares_headers:
        assert outcome.requests["headers"] < 4 * len(tensors)
        assert max(outcome.seconds) < 3 * given.limit
    else:
        assert outcome.requests["headers"] > 20 * len(tensors)
        assert min(outcome.seconds) > 20 * len(tensors) / given.requests
    assert (outcome.failed, len(outcome.seconds)) == (0, 24)


def test_in_three_zones_most_bytes_come_from_peers_of_the_own_one(simulated_fleet: ModuleType) -> None:
    given = settings(simulated_fleet, nodes=24, zones=3)
    outcome = simulated_fleet.Fleet(given).run()
    assert max(outcome.seconds) < 3 * given.limit
    assert outcome.zone_bytes < 24 * given.size / 3
    anywhere = simulated_fleet.Fleet(settings(simulated_fleet, nodes=24, zones=3, prefers_zone=False)).run()
    assert outcome.zone_bytes < 0.6 * anywhere.zone_bytes


def test_flows_share_links_evenly_and_no_link_carries_more_than_it_can(simulated_fleet: ModuleType) -> None:
    np = pytest.importorskip("numpy")
    source, target = np.array([0, 0, 0, 1, 2]), np.array([1, 2, 3, 3, 3])
    links = np.array([30.0, 100.0, 100.0, 40.0])
    rates = simulated_fleet.share(source, target, np.full(5, 25.0), links)
    assert np.bincount(source, rates, 4)[0] <= 30.0 + 1e-9
    assert np.bincount(target, rates, 4)[3] == pytest.approx(40.0)
    assert rates[0] == pytest.approx(rates[1])
