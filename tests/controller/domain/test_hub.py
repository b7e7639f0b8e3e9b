"""``source.hub``: the plan, the token in the loader's environment, and what a resolve Job may report."""

from __future__ import annotations

from typing import Any

import pytest

from operator_support import objects
from operator_support.injection import annotated_pod, find_loader, inject_pod, plain_env
from operator_support.simulation import Simulation
from tonnage import contract
from tonnage.contract.revision import hub_place
from tonnage_operator.api import names
from tonnage_operator.domain.observed.remedies import remedy
from tonnage_operator.domain.specs import jobs

COMMIT = "a" * 40
HUB: dict[str, Any] = {"source": {"s3": None, "hub": {"repo": "org/model"}}}
SECRET = {"credentials": {"secretRef": {"name": "hub-token"}}}


def report(
    *,
    commit: str = COMMIT,
    endpoint: str = "https://huggingface.co",
    repo: str = "org/model",
    key: str = "a.safetensors",
) -> contract.Report:
    """Returns the report of a resolve Job for a hub."""
    pins = (
        contract.ObjectPin(key="config.json", size=10, etag="b" * 40, version_id=COMMIT),
        contract.ObjectPin(key=key, size=objects.GIB, etag="c" * 64, version_id=commit, checksum=f"sha256:{'c' * 64}"),
    )
    place = hub_place(endpoint, repo)
    digest = contract.revision_digest((place, pin) for pin in pins)
    return contract.Report(
        kind=contract.ReportKind.RESOLVED,
        digest=digest,
        revision=contract.revision_id(digest),
        resolved=(contract.ResolvedSource(place=place, objects=pins),),
    )


def resolved(answer: contract.Report, spec: dict[str, Any] = HUB) -> Simulation:
    """Returns a simulation whose resolve Job has reported."""
    simulation = Simulation(spec)
    simulation.add_nodes("n0")
    simulation.converge()
    (job,) = simulation.active_jobs(names.ROLE_RESOLVE)
    simulation.reports[job["metadata"]["uid"]] = answer
    simulation.finish_job(job)
    simulation.converge()
    return simulation


def test_a_repository_is_resolved_and_pods_load_its_commit_even_if_the_branch_moves() -> None:
    simulation = resolved(report())
    assert simulation.condition("Ready") == ("True", "LoadedOnDemand")
    assert simulation.status["source"] == "hf://org/model@main"
    weights = objects.modelweights(HUB, status=simulation.status)
    plan = contract.decode_plan(plain_env(find_loader(inject_pod(annotated_pod(), weights)))["TONNAGE_PLAN"])
    assert plan.sources == (contract.HubSource(repo="org/model", revision=COMMIT),)
    assert plan.expected_digest == report().digest


@pytest.mark.parametrize(
    "lie",
    [
        report(commit="d" * 40),
        report(repo="org/other"),
        report(repo="evil/model"),
        report(key="notes.md"),
        report(key="../a.exe"),
    ],
    ids=["two commits", "another repository", "another organization", "a file that is not selected", "a path"],
)
def test_a_report_of_other_files_is_not_used(lie: contract.Report) -> None:
    assert resolved(lie).condition("Resolved") == ("False", "ReportContradictsItself")


def test_a_report_must_be_of_the_endpoint_and_the_commit_that_the_spec_names() -> None:
    mirror = objects.deep_merge(HUB, {"source": {"hub": {"endpoint": "https://mirror/hf"}}})
    assert resolved(report(), mirror).condition("Resolved") == ("False", "ReportContradictsItself")
    assert resolved(report(endpoint="https://mirror/hf"), mirror).condition("Resolved")[0] == "True"
    other = objects.deep_merge(HUB, {"source": {"hub": {"revision": "e" * 40}}})
    assert resolved(report(), other).condition("Resolved") == ("False", "ReportContradictsItself")
    same = objects.deep_merge(HUB, {"source": {"hub": {"revision": COMMIT}}})
    assert resolved(report(), same).condition("Resolved")[0] == "True"


@pytest.mark.parametrize("reason", ["AccessDenied", "ObjectNotFound", "EndpointUnreachable", "StoreUnsupported"])
def test_a_failure_names_the_fields_of_the_hub(reason: str) -> None:
    assert "spec.credentials.secretRef" in remedy(reason, "hf://a/b: no.") or "spec.source.hub" in remedy(
        reason, "hf://a/b: no."
    )
    assert "hub" not in remedy(reason, "s3://a/b: no.")


def test_the_loader_gets_the_token_from_the_secret_and_no_keys_of_aws() -> None:
    weights = objects.modelweights({**HUB, **SECRET})
    job = jobs.build_resolve_job(weights, objects.INSTALLATION, round_="", attempt=1)["spec"]["template"]["spec"]
    (loader,) = job["containers"]
    found = [each for each in loader["env"] if "secretKeyRef" in each.get("valueFrom", {})]
    assert found == [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub-token", "key": "HF_TOKEN"}}}]
    anonymous = objects.modelweights({**HUB, "credentials": {"anonymous": {}}})
    job = jobs.build_resolve_job(anonymous, objects.INSTALLATION, round_="", attempt=1)["spec"]["template"]["spec"]
    (source,) = contract.decode_plan(plain_env(job["containers"][0])["TONNAGE_PLAN"]).sources
    assert source == contract.HubSource(repo="org/model", anonymous=True)
