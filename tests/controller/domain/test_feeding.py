"""How many nodes are warmed at the same time when nodes serve entries to each other."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operator_support import objects
from operator_support.simulation import Simulation, prewarming_simulation
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.domain.modelweights.reconcile import decide
from tonnage_operator.domain.peers.feeding import LOADS_PER_HOLDER, MIN_FRACTION, count_feedable_loads, is_holder
from tonnage_operator.domain.reasons import EventReason

if TYPE_CHECKING:
    from tonnage_operator.domain.modelweights.snapshot import Snapshot

DIGEST = "ab" * 32
COUNTS = st.integers(0, 10_000)


@given(st.integers(1, 10_000), COUNTS, COUNTS)
def test_more_holders_never_feed_fewer_loads_and_the_users_number_always_holds(
    concurrent: int, some: int, more: int
) -> None:
    low, high = sorted((some, more))
    assert concurrent <= count_feedable_loads(concurrent, low) <= count_feedable_loads(concurrent, high)
    assert count_feedable_loads(concurrent, high) <= max(concurrent, LOADS_PER_HOLDER * high)
    assert count_feedable_loads(concurrent, 0) == concurrent


@given(COUNTS, COUNTS, COUNTS)
def test_a_node_that_feeds_others_still_does_when_it_has_more(loaded: int, more: int, total: int) -> None:
    assert not is_holder(loaded, 0)
    if is_holder(loaded, total):
        assert is_holder(loaded + more, total)
        assert loaded * MIN_FRACTION >= total


@dataclass
class PeerSimulation(Simulation):
    """A simulation in which the nodes have peers, as far as ``peer_nodes`` names them, and loaders ask for them."""

    peer_nodes: set[str] = field(default_factory=set)
    asking: set[str] = field(default_factory=set)

    def snapshot(self) -> Snapshot:
        return replace(super().snapshot(), peer_nodes=self.peer_nodes, asking_nodes=lambda _key: self.asking)

    def report_progress(self, loaded: int, total: int = 100) -> None:
        """Reports this progress of all active loads, whose loaders ask for peers."""
        for job in self.active_jobs(names.ROLE_LOAD):
            progress = contract.Progress(phase="loading", loaded_bytes=loaded, total_bytes=total)
            self.reports[job["metadata"]["uid"]] = contract.Report(kind=contract.ReportKind.PROGRESS, progress=progress)
            self.asking.add(self.job_node(job))
        self.converge()

    def finish_verified(self, level: str = "crc32", digest: str = "") -> None:
        """Completes all active loads at this level."""
        for job in self.active_jobs(names.ROLE_LOAD):
            revision = self.status["resolved"]["revision"]
            self.finish_job(
                job,
                contract.Report(
                    outcome=contract.Outcome.LOADED,
                    bytes=2 * objects.GIB,
                    verified=level,
                    revision=revision,
                    headers_digest=digest,
                ),
            )
        self.converge()


def simulate(nodes: int, *, concurrent: int = 2, peers: bool = True) -> PeerSimulation:
    plain = prewarming_simulation(nodes, {"placement": {"maxConcurrentNodes": concurrent}})
    simulation = PeerSimulation(plain.spec, plain.node_bodies)
    simulation.peer_nodes = set(simulation.node_bodies) if peers else set()
    simulation.finish_resolve()
    return simulation


def progressing_message(simulation: Simulation) -> str:
    return str(next(each["message"] for each in simulation.status["conditions"] if each["type"] == "Progressing"))


def test_each_warm_node_feeds_four_and_the_condition_shows_it() -> None:
    simulation = simulate(40)
    waves = []
    while loading := simulation.loading_nodes():
        waves.append(len(loading))
        simulation.finish_verified()
    assert waves == [2, 8, 30]
    simulation = simulate(40)
    simulation.finish_verified()
    assert progressing_message(simulation).endswith(" 2 nodes serve them what they have.")


def test_nodes_that_have_a_small_part_feed_others_before_they_are_warm() -> None:
    simulation = simulate(40)
    simulation.report_progress(3)
    assert len(simulation.loading_nodes()) == 2
    for expected in (8, 32, 40):
        simulation.report_progress(4)
        assert len(simulation.loading_nodes()) == expected
    assert simulation.status["nodes"]["warm"] == 0


@pytest.mark.parametrize("why", ["no peers", "no ready peer", "not asking", "no hashes"])
def test_only_the_users_number_loads_while_no_node_feeds_others(why: str) -> None:
    simulation = simulate(20, peers=why != "no peers")
    if why == "no ready peer":
        simulation.peer_nodes = set(simulation.node_bodies) - simulation.loading_nodes()
    if why == "no hashes":
        simulation.finish_verified("size")
        assert len(simulation.loading_nodes()) == 2
        return
    simulation.report_progress(50)
    if why == "not asking":
        simulation.asking.clear()
        simulation.step()
        assert "serve" not in progressing_message(simulation)
    else:
        assert len(simulation.loading_nodes()) == 2
        assert "serve" not in progressing_message(simulation)


def test_the_first_digest_of_headers_that_a_load_reports_stays_with_its_revision() -> None:
    simulation = simulate(3, concurrent=1)
    simulation.finish_verified(digest=DIGEST)
    assert simulation.status["resolved"]["headersDigest"] == DIGEST
    simulation.finish_verified(digest="cd" * 32)
    simulation.finish_verified()
    assert simulation.status["resolved"]["headersDigest"] == DIGEST
    before = simulation.status
    simulation.advance(3600)
    assert simulation.status == before


def test_a_digest_of_another_revision_is_not_kept() -> None:
    simulation = simulate(1)
    (job,) = simulation.active_jobs(names.ROLE_LOAD)
    report = contract.Report(outcome=contract.Outcome.LOADED, revision="r-" + "0" * 32, headers_digest=DIGEST)
    simulation.finish_job(job, report)
    simulation.converge()
    assert not simulation.status["resolved"].get("headersDigest")


def test_a_load_that_peers_helped_shows_that_in_its_event_and_adds_no_notes_to_the_object() -> None:
    simulation = simulate(2, concurrent=1)
    simulation.finish_verified()
    (job,) = simulation.active_jobs(names.ROLE_LOAD)
    lying = contract.DroppedPeer(node="n0", reason="WrongBytes", why="model/0: tensor w is wrong.")
    simulation.finish_job(
        job,
        contract.Report(
            outcome=contract.Outcome.LOADED,
            revision=simulation.status["resolved"]["revision"],
            bytes=2 * objects.GIB,
            downloaded_bytes=2 * objects.GIB,
            peer_bytes=objects.GIB,
            seconds=1.0,
            verified="crc32",
            dropped_peers=(
                lying,
                contract.DroppedPeer(node="n0", reason="Busy"),
                contract.DroppedPeer(node="no node", reason="WrongBytes"),
            ),
            notes=("1 bytes came from peers.",),
        ),
    )
    simulation.sync_nodes()
    decision = decide(simulation.snapshot())
    texts = [event.message for event in decision.deferred_events]
    assert any(text.endswith("2Gi/s, 1Gi of it from peers.") for text in texts), texts
    (wrong,) = [event for event in decision.deferred_events if event.reason == EventReason.PEER_DROPPED]
    assert (wrong.warning, "peer of n0 sent wrong bytes to" in wrong.message) == (True, True)
    assert decision.status.notes is None
