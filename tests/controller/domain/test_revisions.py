"""Which revision is used: pinning, tracking, updates, rollbacks, rejected digests."""

from __future__ import annotations

import pytest

from operator_support import objects
from operator_support.injection import loader_plan
from operator_support.simulation import Simulation, prewarming_simulation
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.domain.specs.plans import build_load_plan


def test_pinned_resolves_once_and_track_resolves_at_each_interval() -> None:
    simulation = Simulation()
    simulation.finish_resolve()
    simulation.advance(10**6)
    assert len(simulation.started_jobs) == 1
    simulation = Simulation({"revision": {"policy": "Track", "interval": "10m"}})
    simulation.finish_resolve()
    assert simulation.converge().requeue_after == 600
    simulation.advance(599)
    assert len(simulation.started_jobs) == 1
    simulation.advance(2)
    assert len(simulation.started_jobs) == 2


def test_a_new_revision_is_shown_and_waits_for_a_pin() -> None:
    simulation = prewarming_simulation(1, {"revision": {"policy": "Track", "interval": "10m"}})
    simulation.finish_resolve()
    simulation.finish_loads()
    old = simulation.status["resolved"]["revision"]
    simulation.advance(601)
    simulation.finish_resolve("2")
    new = simulation.status["available"]["revision"]
    assert simulation.status["resolved"]["revision"] == old != new
    assert simulation.condition("UpdateAvailable") == ("True", "SourceChanged")
    assert simulation.loading_nodes() == set()
    simulation.spec["revision"]["pin"] = new
    simulation.converge()
    assert simulation.status["resolved"]["revision"] == old, "it is used when a node has it"
    assert simulation.loading_nodes() == {"n0"}
    simulation.finish_loads()
    assert simulation.status["resolved"]["revision"] == new
    assert simulation.condition("UpdateAvailable")[0] == "False"
    assert "RevisionChanged" in simulation.events
    simulation.spec["revision"]["pin"] = old
    simulation.converge()
    for job in simulation.active_jobs(names.ROLE_CLEANUP):
        simulation.finish_job(job)
    simulation.converge()
    simulation.finish_loads()
    assert simulation.status["resolved"]["revision"] == old
    assert simulation.status["available"]["revision"] == new


def test_an_unknown_pin_is_rejected_with_the_known_revisions() -> None:
    simulation = Simulation({"revision": {"pin": "r-000000000000"}})
    simulation.finish_resolve()
    assert simulation.condition("Resolved") == ("False", "PinUnknown")
    assert simulation.condition("Ready")[0] == "False"


def test_an_automatic_update_loads_the_new_revision_and_then_uses_it() -> None:
    simulation = prewarming_simulation(2, {"revision": {"policy": "Track", "interval": "10m", "update": "Automatic"}})
    simulation.finish_resolve()
    simulation.finish_loads()
    old = simulation.status["resolved"]["revision"]
    simulation.advance(601)
    simulation.finish_resolve("2")
    assert simulation.status["resolved"]["revision"] == old
    assert simulation.condition("Progressing") == ("True", "Updating")
    assert simulation.condition("Ready") == ("True", "Warm")
    assert {entry.name for entry in simulation.caches["n0"].entries or ()} == {
        old,
        simulation.status["available"]["revision"],
    }
    simulation.finish_loads()
    assert simulation.status["resolved"]["revision"] != old
    assert "available" not in simulation.status
    assert simulation.condition("Warm")[0] == "True"
    (history,) = simulation.status["history"]
    assert history["revision"] == old


def test_another_source_is_resolved_again_and_its_old_loads_stop() -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve()
    assert simulation.loading_nodes()
    simulation.spec["source"] = {"s3": {"bucket": "models", "prefix": "other/"}}
    simulation.converge()
    assert simulation.condition("Resolved") == ("False", "Resolving")
    assert simulation.loading_nodes() == set()


def test_an_expected_digest_rejects_other_revisions() -> None:
    simulation = Simulation()
    simulation.finish_resolve()
    simulation.spec["revision"] = {"expectedDigest": "sha256:" + "0" * 64}
    simulation.converge()
    assert simulation.condition("Resolved") == ("False", "DigestMismatch")
    assert simulation.condition("Ready") == ("False", "DigestMismatch")


def test_a_medium_that_is_not_configured_is_rejected() -> None:
    installation = objects.INSTALLATION.model_copy(update={"media": {}})
    simulation = Simulation(installation=installation)
    simulation.converge()
    assert simulation.condition("Accepted") == ("False", "MediumNotConfigured")
    assert not simulation.jobs


@pytest.mark.parametrize(
    ("count", "folder"), [(2500, "llama/a"), (150, "llama/" + "a" * 800)], ids=["many", "long names"]
)
def test_a_huge_list_is_pinned_by_its_digest(count: int, folder: str) -> None:
    simulation = prewarming_simulation(1)
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    report = objects.resolved_report(count=count, folder=folder)
    simulation.reports[job["metadata"]["uid"]] = report
    simulation.finish_job(job)
    simulation.converge()
    assert "objects" not in simulation.status["resolved"]
    assert simulation.status["resolved"]["objectCount"] == count + 1
    (load,) = simulation.active_jobs(names.ROLE_LOAD)
    plan = loader_plan(load)
    assert plan.expected_digest == report.digest
    assert plan.sources[0].objects is None


VIRTUAL = contract.StoreBehavior(addressing_style=contract.AddressingStyle.VIRTUAL)
EVERYTHING_FOUND = contract.StoreBehavior(
    addressing_style=contract.AddressingStyle.VIRTUAL, region="eu-west-3", etag_only=True
)


@pytest.mark.parametrize("behavior", [None, VIRTUAL, contract.StoreBehavior(etag_only=True), EVERYTHING_FOUND])
@pytest.mark.parametrize("lists_objects", [True, False])
def test_what_a_resolve_job_found_out_about_the_store_is_in_all_plans_of_loads(
    behavior: contract.StoreBehavior | None, lists_objects: bool
) -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve(behavior=behavior)
    (job,) = simulation.active_jobs(names.ROLE_LOAD)
    (source,) = loader_plan(job).sources
    assert isinstance(source, contract.S3Source)
    assert source.behavior == behavior
    assert source.addressing_style is contract.AddressingStyle.AUTO
    seen = simulation.weights.status.resolved
    assert seen is not None
    plan = build_load_plan(simulation.weights, seen, objects.INSTALLATION, lists_objects=lists_objects)
    assert plan.sources[0].behavior == behavior  # type: ignore[union-attr]


def test_each_round_asks_the_store_again_and_what_it_finds_replaces_what_was_known() -> None:
    simulation = Simulation({"revision": {"policy": "Track", "interval": "10m"}})
    simulation.finish_resolve(behavior=VIRTUAL)
    assert simulation.status["resolved"]["behavior"]["addressingStyle"] == "Virtual"
    simulation.advance(601)
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    assert loader_plan(job).sources[0].behavior is None  # type: ignore[union-attr]
    simulation.finish_resolve()
    assert "behavior" not in simulation.status["resolved"]
    simulation.advance(601)
    simulation.finish_resolve("2")
    simulation.advance(601)
    simulation.finish_resolve("2", VIRTUAL)
    assert simulation.status["available"]["behavior"]["addressingStyle"] == "Virtual"
    assert "behavior" not in simulation.status["resolved"]
