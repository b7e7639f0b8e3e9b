"""No entry stays for good after its last reference, in whatever order objects, nodes and Jobs are reconciled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operator_support import objects
from operator_support.simulation import Simulation, consumer_pod
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Retention
from tonnage_operator.api.nodecache import CacheEntry, NodeCacheStatus

if TYPE_CHECKING:
    from tonnage_operator.domain.modelweights.deletion import Deletion

REVISION = objects.resolved_report().revision


@dataclass
class _LaggingSimulation(Simulation):
    """A simulation whose nodes are reconciled only when the test does it, as if their queue lagged behind."""

    lagging: bool = True

    def sync_nodes(self) -> None:
        if not self.lagging:
            super().sync_nodes()

    def sync_now(self) -> None:
        """Reconciles each node once."""
        super().sync_nodes()


def _evictable(retention: str = "WhileReferenced", prewarm: str = "AllMatching") -> _LaggingSimulation:
    """Returns an object and a node that has its revision from an earlier object, kept until space is needed."""
    simulation = _LaggingSimulation({"placement": {"prewarm": prewarm}, "cache": {"retention": retention}})
    simulation.add_nodes("n0")
    entry = CacheEntry.model_validate(
        {"name": REVISION, "medium": "Memory", "state": "Ready", "retention": "Evictable", "bytes": 1}
    )
    simulation.caches["n0"] = NodeCacheStatus(bootID="boot-1", entries=(entry,))
    return simulation


def _settle(simulation: _LaggingSimulation) -> Deletion:
    """Deletes the object, reconciles everything and finishes cleanups until nothing changes."""
    simulation.lagging = False
    simulation.consumers = []
    deletion = simulation.step_deletion()
    for _ in range(10):
        for job in simulation.active_jobs(names.ROLE_CLEANUP):
            simulation.finish_job(job)
        simulation.now += timedelta(hours=1)
        simulation.sync_now()
        deletion = simulation.step_deletion()
    return deletion


def test_an_evictable_entry_that_is_referenced_and_released_before_its_node_is_reconciled_is_evicted() -> None:
    simulation = _evictable()
    simulation.finish_resolve()
    assert simulation.condition("Warm") == ("True", "AllNodesWarm")
    deletion = simulation.step_deletion()
    assert deletion.waiting_message, "the finalizer stays until the node's record shows the release"
    assert not _settle(simulation).waiting_message
    assert not simulation.caches["n0"].entries


def test_an_evictable_object_does_not_wait_and_keeps_the_entry() -> None:
    simulation = _evictable(retention="Evictable")
    simulation.finish_resolve()
    assert not simulation.step_deletion().waiting_message
    assert not _settle(simulation).waiting_message
    (entry,) = simulation.caches["n0"].entries or ()
    assert entry.retention is Retention.EVICTABLE


@pytest.mark.parametrize("change", ["not ready", "gone"])
def test_a_node_that_can_evict_nothing_does_not_block_a_deletion(change: str) -> None:
    simulation = _evictable()
    simulation.finish_resolve()
    if change == "gone":
        del simulation.node_bodies["n0"]
    else:
        simulation.node_bodies["n0"] = objects.node("n0", ready=False)
    assert not _settle(simulation).waiting_message


def test_a_pod_that_holds_the_entry_does_not_block_the_deletion_and_the_entry_goes_with_it() -> None:
    simulation = _evictable()
    simulation.finish_resolve()
    pod = consumer_pod(simulation, "n0")
    simulation.consumers = [pod]
    assert simulation.step_deletion().waiting_message
    simulation.sync_now()
    assert not simulation.step_deletion().waiting_message
    simulation.consumers = [replace(pod, phase="Succeeded")]
    _settle(simulation)
    assert not simulation.caches["n0"].entries


_STEPS = st.lists(st.sampled_from(["object", "node", "pod", "no pod", "fail cleanup", "end cleanup"]), max_size=14)


@settings(max_examples=80)
@given(before=_STEPS, after=_STEPS, prewarm=st.sampled_from(["None", "AllMatching"]), evictable=st.booleans())
def test_in_any_order_of_reconciles_an_entry_goes_with_its_last_reference(
    before: list[str], after: list[str], prewarm: str, *, evictable: bool
) -> None:
    """The object is deleted between the two lists of steps, at any moment of its own and its node's reconciles."""
    simulation = _evictable("Evictable" if evictable else "WhileReferenced", prewarm)
    simulation.finish_resolve()
    for step in before:
        _run(simulation, step, deleted=False)
    removed = not simulation.step_deletion().waiting_message
    for step in after:
        removed = _run(simulation, step, deleted=True, removed=removed)
    if removed:
        simulation.deleting = True
        simulation.lagging, simulation.consumers = False, []
        _settle_without_object(simulation)
    else:
        assert not _settle(simulation).waiting_message
    assert evictable or not simulation.caches["n0"].entries


def _run(simulation: _LaggingSimulation, step: str, *, deleted: bool, removed: bool = False) -> bool:
    """Runs one step and returns whether the object's finalizer was removed by then."""
    cleanups = simulation.active_jobs(names.ROLE_CLEANUP)
    if step == "node":
        simulation.sync_now()
    elif step == "pod" and not deleted:
        simulation.consumers = [consumer_pod(simulation, "n0")]
    elif step == "no pod":
        simulation.consumers = []
    elif step == "fail cleanup" and cleanups:
        simulation.finish_job(cleanups[0], None, code=1)
    elif step == "end cleanup" and cleanups:
        simulation.finish_job(cleanups[0])
    elif step == "object":
        if deleted:
            return removed or not simulation.step_deletion().waiting_message
        simulation.step()
    return removed


def _settle_without_object(simulation: _LaggingSimulation) -> None:
    """Reconciles the nodes and finishes cleanups after the object is gone."""
    simulation.gone = True
    for _ in range(12):
        for job in simulation.active_jobs(names.ROLE_CLEANUP):
            simulation.finish_job(job)
        simulation.now += timedelta(hours=1)
        simulation.sync_now()
