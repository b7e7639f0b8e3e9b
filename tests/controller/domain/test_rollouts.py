"""A revision replaces another one node by node: bounds, progress, rollbacks, and the history."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from operator_support import objects
from operator_support.simulation import Simulation, prewarming_simulation
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.status import MAX_HISTORY
from tonnage_operator.domain.modelweights.revisions import MAX_HISTORY_BYTES
from tonnage_operator.domain.modelweights.rollout import NodeRevisions, max_unavailable, may_switch

if TYPE_CHECKING:
    from tonnage_operator.domain.modelweights.reconcile import Decision

TRACK = {"policy": "Track", "interval": "10m"}
AUTOMATIC = {**TRACK, "update": "Automatic"}


def _warmed(count: int, revision: dict[str, Any]) -> Simulation:
    """Returns nodes that have the first revision."""
    simulation = prewarming_simulation(count, {"revision": {**revision}, "placement": {"maxConcurrentNodes": 1}})
    simulation.finish_resolve()
    while simulation.loading_nodes():
        simulation.finish_loads()
    return simulation


def _in_use(simulation: Simulation) -> str:
    revision: str = simulation.status["resolved"]["revision"]
    return revision


def _publish(simulation: Simulation, version: str) -> None:
    simulation.advance(601)
    simulation.finish_resolve(version)


def _message(simulation: Simulation, kind: str) -> str:
    found = next(each for each in simulation.status["conditions"] if each["type"] == kind)
    return str(found["message"])


@pytest.mark.parametrize(("limit", "before"), [(0, 4), (1, 3), ("25%", 3), ("49%", 3), ("50%", 2), (3, 1), ("99%", 1)])
def test_new_pods_get_a_revision_when_at_most_max_unavailable_nodes_lack_it(limit: int | str, before: int) -> None:
    simulation = _warmed(4, {**AUTOMATIC, "rollout": {"maxUnavailable": limit}})
    old = _in_use(simulation)
    _publish(simulation, "2")
    for done in range(before):
        assert _in_use(simulation) == old
        assert simulation.status["nodes"]["updated"] == done
        assert simulation.status["nodes"]["warm"] == 4
        simulation.finish_loads()
    assert _in_use(simulation) != old
    while simulation.loading_nodes():
        assert simulation.status["rollout"]["inUse"]
        simulation.finish_loads()
    assert "rollout" not in simulation.status
    assert [each for each in simulation.events if each.startswith(("Rollout", "Revision"))] == [
        "RolloutStarted",
        "RevisionChanged",
        "RolloutCompleted",
    ]


@pytest.mark.parametrize("limit", [4, 9, "100%"])
def test_a_rollback_to_all_nodes_at_once_is_in_use_at_once(limit: int | str) -> None:
    simulation = _warmed(4, TRACK)
    old = _in_use(simulation)
    _publish(simulation, "2")
    simulation.spec["revision"] |= {"pin": simulation.status["available"]["revision"]}
    simulation.converge()
    while simulation.loading_nodes():
        simulation.finish_loads()
    assert _in_use(simulation) != old
    simulation.spec["revision"] |= {"pin": old, "rollout": {"maxUnavailable": limit}}
    simulation.step()
    assert _in_use(simulation) == old


def test_a_pin_is_rolled_out_as_an_update_is_and_the_status_shows_how_far() -> None:
    simulation = _warmed(3, TRACK)
    old = _in_use(simulation)
    _publish(simulation, "2")
    new = simulation.status["available"]["revision"]
    simulation.spec["revision"] |= {"pin": new}
    simulation.converge()
    simulation.finish_loads()
    assert simulation.status["rollout"] == {
        "revision": new,
        "previous": old,
        "startTime": simulation.status["rollout"]["startTime"],
        "maxUnavailable": 0,
        "outdated": 2,
        "inUse": False,
    }
    assert simulation.condition("Progressing") == ("True", "Updating")
    assert _message(simulation, "Progressing") == (
        f"1 node is loading {new}. 1 of 3 nodes has {new}. New pods get {old} until at most 0 of the nodes that have "
        "it lack the new one; now 2 lack it."
    )
    simulation.spec["revision"].pop("pin")
    simulation.converge()
    assert "rollout" not in simulation.status, "without the pin nothing is rolled out"
    assert not simulation.loading_nodes()
    assert _in_use(simulation) == old


def test_a_node_that_can_not_load_the_revision_holds_it_back_until_it_is_allowed_to_lack_it() -> None:
    simulation = _warmed(2, AUTOMATIC)
    old = _in_use(simulation)
    _publish(simulation, "2")
    (job,) = simulation.active_jobs(names.ROLE_LOAD)
    bad = simulation.job_node(job)
    simulation.finish_job(job, objects.failed_report("ChecksumMismatch"), code=24)
    simulation.converge()
    simulation.finish_loads(*({"n0", "n1"} - {bad}))
    assert simulation.condition("Progressing") == ("False", "RolloutBlocked")
    assert f"{bad}: ChecksumMismatch" in _message(simulation, "Progressing")
    assert "raise spec.revision.rollout.maxUnavailable" in _message(simulation, "Progressing")
    assert _in_use(simulation) == old
    simulation.spec["revision"] |= {"rollout": {"maxUnavailable": 1}}
    simulation.converge()
    assert _in_use(simulation) != old


def test_an_expected_digest_that_rejects_the_revision_in_use_does_not_wait_for_nodes() -> None:
    simulation = _warmed(2, TRACK)
    old = _in_use(simulation)
    _publish(simulation, "2")
    new = simulation.status["available"]
    simulation.spec["revision"] |= {"pin": new["revision"], "expectedDigest": new["digest"]}
    simulation.converge()
    assert _in_use(simulation) == new["revision"] != old
    assert simulation.condition("Resolved")[0] == "True"


def test_the_history_numbers_what_was_in_use_and_is_bounded() -> None:
    simulation = Simulation({"revision": AUTOMATIC})
    for version in range(MAX_HISTORY + 4):
        _publish(simulation, str(version))
    history = simulation.status["history"]
    assert simulation.status["resolved"]["number"] == MAX_HISTORY + 4
    assert [each["number"] for each in history] == list(range(MAX_HISTORY + 3, 3, -1))
    assert all(each["source"] == "s3://models/llama/" and each["usedTime"] for each in history)
    simulation.spec["revision"] = {**TRACK, "pin": history[2]["revision"]}
    simulation.converge()
    assert simulation.status["resolved"]["number"] == MAX_HISTORY + 5, "a rollback is a change, too"
    assert history[2]["revision"] not in {each["revision"] for each in simulation.status["history"]}


def test_a_revision_of_an_earlier_source_is_in_the_history_and_can_not_be_pinned_alone() -> None:
    simulation = Simulation({"revision": TRACK})
    simulation.finish_resolve()
    old = _in_use(simulation)
    source = simulation.spec["source"] = {"s3": {"bucket": "models", "prefix": "llama-2/"}}
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    simulation.reports[job["metadata"]["uid"]] = objects.resolved_report("2", folder="llama-2")
    simulation.finish_job(job)
    simulation.converge()
    assert [each["revision"] for each in simulation.status["history"]] == [old]
    simulation.spec["revision"] = {**TRACK, "pin": old}
    simulation.converge()
    assert simulation.condition("Resolved") == ("False", "PinUnknown")
    assert "another source (s3://models/llama/): set spec.source" in _message(simulation, "Resolved")
    assert source


def test_lists_of_objects_leave_the_history_before_the_object_is_too_large_for_etcd() -> None:
    simulation = Simulation({"revision": AUTOMATIC})
    for version in range(6):
        simulation.advance(601)
        (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
        report = objects.resolved_report(str(version), count=80, folder="llama/" + "a" * 800)
        simulation.reports[job["metadata"]["uid"]] = report
        simulation.finish_job(job)
        simulation.converge()
    history = simulation.weights.status.history or ()
    listed = [each for each in history if each.objects]
    assert 0 < len(listed) < len(history) == 5
    assert history[: len(listed)] == tuple(listed), "the newest keep theirs"
    assert sum(len(pin.key) for each in listed for pin in each.objects or ()) <= MAX_HISTORY_BYTES


@pytest.mark.parametrize(
    ("desired", "updated", "replaced", "limit", "switches"),
    [
        ("abc", "ab", "abc", 1, True),
        ("abc", "ab", "abc", 0, False),
        ("abc", "a", "a", 0, True),  # no other node is warm
        ("abc", "", "", 0, False),  # nothing shows that it can be loaded
        ("abc", "", "abc", 3, True),  # asked for
        ("", "", "", 0, True),  # nothing is warmed
    ],
)
def test_when_new_pods_get_the_new_revision(
    desired: str, updated: str, replaced: str, limit: int, *, switches: bool
) -> None:
    nodes = NodeRevisions(frozenset(desired), frozenset(updated), frozenset(replaced))
    assert may_switch(nodes, limit) is switches


@dataclass
class _Watched(Simulation):
    """Records at each change of the revision in use how many nodes became cold by it."""

    made_cold: list[tuple[int, int]] = field(default_factory=list)
    """Nodes, and how many of them were allowed."""

    def warm(self, revision: str) -> set[str]:
        return set(self.snapshot().warm_nodes(revision, Medium.MEMORY))

    def step(self) -> Decision:
        before = self.status.get("resolved", {}).get("revision", "")
        had = self.warm(before) if before else set()
        decision = super().step()
        after = self.status.get("resolved", {}).get("revision", "")
        if before and after != before:
            ready = {name for name, body in self.node_bodies.items() if not body["spec"].get("unschedulable")}
            limit = max_unavailable(self.weights.spec.revision.rollout, len(ready))
            lost = (had & ready) - self.warm(after)
            self.made_cold.append((len(lost), limit))
        return decision


class Rollouts(RuleBasedStateMachine):
    """Sources change, loads end well or badly, nodes come, go and are cordoned, revisions are pinned."""

    simulation: _Watched
    version = 1

    @initialize(count=st.integers(1, 5), limit=st.sampled_from([0, 1, 2, "30%", "50%", "100%"]))
    def start(self, count: int, limit: int | str) -> None:
        placement = {"prewarm": "AllMatching", "maxConcurrentNodes": 2}
        revision = {**AUTOMATIC, "rollout": {"maxUnavailable": limit}}
        self.simulation = _Watched({"revision": revision, "placement": placement})
        self.simulation.add_nodes(*(f"n{index}" for index in range(count)))
        self.simulation.finish_resolve()

    @rule()
    def publish(self) -> None:
        self.version += 1
        self.simulation.advance(601)
        if self.simulation.active_jobs(names.ROLE_RESOLVE):
            self.simulation.finish_resolve(str(self.version))

    @precondition(lambda self: self.simulation.loading_nodes())
    @rule(which=st.integers(0, 9), fails=st.booleans())
    def end_a_load(self, which: int, *, fails: bool) -> None:
        active = self.simulation.active_jobs(names.ROLE_LOAD)
        job = active[which % len(active)]
        if fails:
            self.simulation.finish_job(job, objects.failed_report("ChecksumMismatch"), code=24)
            self.simulation.converge()
        else:
            self.simulation.finish_loads(self.simulation.job_node(job))

    @rule(seconds=st.sampled_from([1, 60, 500]))
    def wait(self, seconds: int) -> None:
        self.simulation.advance(seconds)

    @rule(which=st.integers(0, 4))
    def pin(self, which: int) -> None:
        status = self.simulation.weights.status
        known = [each.revision for each in (status.resolved, status.available, *(status.history or ())) if each]
        pin = ["", *known][which % (len(known) + 1)]
        limit = self.simulation.spec["revision"]["rollout"]
        self.simulation.spec["revision"] = {**TRACK, "pin": pin} if pin else {**AUTOMATIC}
        self.simulation.spec["revision"]["rollout"] = limit
        self.simulation.converge()

    @rule(index=st.integers(0, 6), cordoned=st.booleans())
    def change_a_node(self, index: int, *, cordoned: bool) -> None:
        self.simulation.add_nodes(f"n{index}", **({"unschedulable": True} if cordoned else {}))
        self.simulation.converge()

    @invariant()
    def no_change_makes_more_nodes_cold_than_allowed(self) -> None:
        for lost, allowed in getattr(getattr(self, "simulation", None), "made_cold", ()):
            assert lost <= allowed

    def teardown(self) -> None:
        """When loads succeed, every rollout ends."""
        simulation = getattr(self, "simulation", None)
        if simulation is None:
            return
        wanted = simulation.spec["revision"].get("pin")
        for _ in range(100):
            if not simulation.loading_nodes() and "rollout" not in simulation.status:
                break
            for job in simulation.active_jobs(names.ROLE_CLEANUP):
                simulation.finish_job(job)
            simulation.finish_loads()
            simulation.advance(0 if simulation.loading_nodes() else 60)
        assert "rollout" not in simulation.status
        if wanted:
            assert _in_use(simulation) == wanted
        self.no_change_makes_more_nodes_cold_than_allowed()


Rollouts.TestCase.settings = settings(max_examples=6, stateful_step_count=15, deadline=None)
test_no_rollout_makes_more_nodes_cold_than_allowed_and_each_ends = Rollouts.TestCase
