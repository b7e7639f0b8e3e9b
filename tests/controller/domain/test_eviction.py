"""Entries of one node: what keeps them, when they are evicted, what proves that they are ready."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from operator_support import objects
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium, Retention
from tonnage_operator.api.nodecache import CacheEntry, EntryState, NodeCacheStatus
from tonnage_operator.api.status import SeenRevision
from tonnage_operator.domain.modelweights.revisions import parse_resolve_report
from tonnage_operator.domain.nodecache.eviction import MAX_CLEANUPS, MAX_ENTRIES
from tonnage_operator.domain.nodecache.reconcile import NodeDecision, decide_node
from tonnage_operator.domain.nodecache.snapshot import ModelReferences, NodeSnapshot
from tonnage_operator.domain.observed.held_entries import HeldEntry
from tonnage_operator.domain.observed.job import Job, parse_job
from tonnage_operator.domain.observed.node import parse_node
from tonnage_operator.domain.observed.pod import LoaderStatus, Pod, TerminatedState
from tonnage_operator.domain.specs import jobs

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENTRY = "r-111111111111"
KEY = (ENTRY, Medium.MEMORY)
REF = "serving/llama"


def _entry(name: str = ENTRY, **fields: Any) -> CacheEntry:
    plain = {"name": name, "medium": Medium.MEMORY, "state": EntryState.READY, "models": (REF,), "bytes": 100}
    return CacheEntry.model_validate({**plain, **fields})


def _referrer(ref: str = REF, **fields: Any) -> ModelReferences:
    plain: dict[str, Any] = {"deleting": False, "entries": frozenset({KEY}), "retention": Retention.WHILE_REFERENCED}
    return ModelReferences(ref, **{**plain, **fields})


def _decide(*entries: CacheEntry, **more: Any) -> NodeDecision:
    node = parse_node(objects.node("n0"))
    status = NodeCacheStatus(bootID="boot-1", entries=entries)
    return decide_node(
        NodeSnapshot(now=NOW, installation=objects.INSTALLATION, node=node, uid="cache", status=status, **more)
    )


def _states(decision: NodeDecision) -> dict[str, EntryState]:
    assert decision.status is not None
    return {entry.name: entry.state for entry in decision.status.entries or ()}


def _pod(claim: HeldEntry, *, started: bool = True, **fields: Any) -> Pod:
    loader = LoaderStatus(
        claim.container, ready=started, terminated=None, waiting_reason="", waiting_message="", started=started
    )
    plain: dict[str, Any] = {
        "namespace": "serving",
        "name": "server",
        "uid": "pod",
        "role": names.ROLE_INJECTED,
        "model_uid": "",
        "job_uid": "",
        "node": "n0",
        "phase": "Running",
        "reason": "",
        "message": "",
        "created": "2026-01-01T00:00:00Z",
        "unschedulable_message": "",
        "held_entries": (claim,),
        "loaders": (loader,),
        "deleting": False,
    }
    return Pod(**{**plain, **fields})


def _held_entry(**fields: Any) -> HeldEntry:
    plain: dict[str, Any] = {
        "container": names.LOADER_CONTAINER,
        "namespace": "serving",
        "name": "llama",
        "uid": objects.UID,
        "revision": ENTRY,
        "key": ENTRY,
        "bytes": 100,
    }
    return HeldEntry(**{**plain, **fields})


def test_referenced_entries_stay_and_unreferenced_entries_are_evicted() -> None:
    other = _entry("r-222222222222")
    decision = _decide(_entry(), other, references=[_referrer()])
    assert _states(decision) == {ENTRY: EntryState.READY, other.name: EntryState.EVICTING}
    (job,) = decision.apply
    assert job["metadata"]["annotations"][names.CAUSE] == "Unreferenced"


def test_an_invalid_object_keeps_the_entries_that_name_it() -> None:
    unread = _referrer(entries=frozenset(), is_valid=False)
    decision = _decide(_entry(), references=[unread])
    assert _states(decision) == {ENTRY: EntryState.READY}
    assert decision.status is not None
    assert [entry.models for entry in decision.status.entries or ()] == [(REF,)]
    assert not decision.apply


def test_an_entry_is_not_evicted_while_its_finished_load_job_exists() -> None:
    job = _ended_load()
    assert not _decide(_entry(state=EntryState.READY, models=()), jobs=[job]).apply
    assert _decide(_entry(models=()), jobs=[]).apply


def _ended_load() -> Job:
    weights = objects.modelweights()
    seen = parse_resolve_report(objects.resolved_report(), weights, now="2026-01-01T00:00:00Z")
    assert isinstance(seen, SeenRevision)
    made = jobs.build_load_job(weights, seen, objects.INSTALLATION, node=parse_node(objects.node("n0")), attempt=1)
    made["metadata"]["annotations"][names.CACHE_KEY] = ENTRY
    stored = objects.stored_job(made)
    stored["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    return parse_job(stored)


def test_the_success_of_an_earlier_cleanup_is_not_taken_for_a_later_one() -> None:
    first = _decide(_entry(models=()))
    (job,) = first.apply
    stored = objects.stored_job(job)
    stored["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    done = parse_job(stored)
    # It was loaded again and is unreferenced again, while the old Job still exists.
    again = _decide(_entry(models=()), jobs=[done])
    assert _states(again) == {ENTRY: EntryState.READY}
    assert (again.apply, again.delete) == ((), (done,))


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (None, EntryState.LOADING),
        (contract.Outcome.FAILED, EntryState.PARTIAL),
        (contract.Outcome.LOADED, EntryState.READY),
        (contract.Outcome.HIT, EntryState.READY),
    ],
)
def test_an_optional_pod_does_not_prove_its_entry_by_starting(
    outcome: contract.Outcome | None, state: EntryState
) -> None:
    reported_outcomes = {("pod", ENTRY): outcome} if outcome else {}
    decision = _decide(
        references=[_referrer()], consumers=[_pod(_held_entry(optional=True))], reported_outcomes=reported_outcomes
    )
    assert _states(decision) == {ENTRY: state}


def test_a_pod_that_requires_its_weights_proves_its_entry_by_starting() -> None:
    decision = _decide(references=[_referrer()], consumers=[_pod(_held_entry())])
    assert _states(decision) == {ENTRY: EntryState.READY}


def test_a_held_entry_that_no_object_authorizes_proves_nothing() -> None:
    stranger = _pod(_held_entry(), namespace="elsewhere")
    held = _decide(references=[_referrer()], consumers=[stranger])
    assert _states(held) == {ENTRY: EntryState.LOADING}
    invited = _decide(references=[_referrer(cross_namespace=True)], consumers=[stranger])
    assert _states(invited) == {ENTRY: EntryState.READY}
    assert _states(_decide(consumers=[_pod(_held_entry())])) == {ENTRY: EntryState.LOADING}


def test_a_pod_adds_no_entry_by_its_annotation_alone() -> None:
    pod = _pod(_held_entry(), started=False)
    assert _decide(consumers=[pod]).status == _decide().status
    assert _states(_decide(references=[_referrer()], consumers=[pod])) == {ENTRY: EntryState.LOADING}
    held = _decide(_entry(models=()), consumers=[pod])
    assert (_states(held), held.apply) == ({ENTRY: EntryState.READY}, ())


def test_a_recorded_name_that_leads_out_of_the_cache_is_dropped_and_never_evicted() -> None:
    decision = _decide(_entry("../../etc", models=()), _entry(), references=[_referrer()])
    assert (_states(decision), decision.apply) == ({ENTRY: EntryState.READY}, ())


def test_a_node_runs_a_few_cleanups_at_a_time() -> None:
    many = [_entry(f"r-{index:012}", models=()) for index in range(150)]
    first = _decide(*many)
    assert len(first.apply) == MAX_CLEANUPS
    assert list(_states(first).values()).count(EntryState.EVICTING) == MAX_CLEANUPS
    assert first.status
    entries = first.status.entries or ()
    running = [parse_job(objects.stored_job(job)) for job in first.apply]
    assert not _decide(*entries, jobs=running).apply
    ended = objects.stored_job(first.apply[0])
    ended["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    assert len(_decide(*entries, jobs=[parse_job(ended), *running[1:]]).apply) == 1


def test_ranks_loaded_by_pods_are_merged() -> None:
    one, two = _pod(_held_entry(ranks="0-3"), uid="one"), _pod(_held_entry(ranks="4,5"), uid="two")
    decision = _decide(references=[_referrer()], consumers=[one, two])
    assert decision.status is not None
    assert [entry.ranks for entry in decision.status.entries or ()] == ["0-5"]


def test_a_load_of_all_ranks_completes_an_entry_with_some_ranks() -> None:
    decision = _decide(_entry(ranks="0-3"), references=[_referrer()], jobs=[_ended_load()])
    assert decision.status is not None
    assert [entry.ranks for entry in decision.status.entries or ()] == [None]


def test_the_least_recently_used_entries_are_evicted_for_space_one_at_a_time() -> None:
    full = _failed_load("InsufficientSpace")
    evictable = {"retention": Retention.EVICTABLE, "models": ()}
    old = _entry("r-0ld", last_used_time="2026-01-01T00:00:00Z", **evictable)
    recent = _entry("r-recent", last_used_time="2026-01-02T00:00:00Z", **evictable)
    job, pod = full
    decision = _decide(old, recent, jobs=[job], pods={job.uid: pod})
    assert _states(decision)["r-0ld"] is EntryState.EVICTING
    assert _states(decision)["r-recent"] is EntryState.READY
    (made,) = decision.apply
    assert made["metadata"]["annotations"][names.CAUSE] == "Pressure"
    assert not _decide(old, recent).apply, "no load needs space"


def _failed_load(reason: str) -> tuple[Job, Pod]:
    weights = objects.modelweights()
    seen = parse_resolve_report(objects.resolved_report(), weights, now="2026-01-01T00:00:00Z")
    assert isinstance(seen, SeenRevision)
    node = parse_node(objects.node("n0"))
    stored = objects.stored_job(jobs.build_load_job(weights, seen, objects.INSTALLATION, node=node, attempt=1))
    stored["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
    return parse_job(stored), objects.terminated_pod(stored, objects.failed_report(reason), exit_code=27)


def test_evictable_entries_above_the_limit_of_a_record_are_evicted_one_at_a_time() -> None:
    used = [f"2026-01-01T00:{index // 60:02}:{index % 60:02}Z" for index in range(MAX_ENTRIES + 2)]
    many = [
        _entry(f"r-{index:012}", retention=Retention.EVICTABLE, models=(), last_used_time=time)
        for index, time in enumerate(used)
    ]
    decision = _decide(*many)
    assert [name for name, state in _states(decision).items() if state is EntryState.EVICTING] == ["r-000000000000"]
    assert len(decision.apply) == 1
    assert not _decide(*many[:MAX_ENTRIES]).apply


def test_an_entry_names_at_most_as_many_objects_as_its_record_allows() -> None:
    decision = _decide(_entry(models=()), references=[_referrer(f"serving/m{index}") for index in range(1200)])
    assert decision.status is not None
    (entry,) = decision.status.entries or ()
    assert len(entry.models) == 1000
    assert _states(decision) == {ENTRY: EntryState.READY}


COMMAND = "vllm serve MODEL --load-format sharded_state"


def _finished(text: str) -> TerminatedState:
    report = contract.Report(outcome=contract.Outcome.LOADED, bytes=1, served_by=text)
    return TerminatedState(0, "Completed", contract.termination_message(report).decode())


@pytest.mark.parametrize(
    ("text", "expected"),
    [(COMMAND, COMMAND), ("", None), (f"{COMMAND}\x1b[2J\n{'x' * 300}", f"{COMMAND}[2J{'x' * 300}"[:256])],
    ids=["a command", "none", "any text"],
)
def test_the_record_names_the_command_that_serves_the_entry(text: str, expected: str | None) -> None:
    pod = _pod(_held_entry())
    loaders = (replace(pod.loaders[0], terminated=_finished(text)),)
    decision = _decide(references=[_referrer()], consumers=[replace(pod, loaders=loaders)])
    assert decision.status is not None
    (entry,) = decision.status.entries or ()
    assert entry.served_by == expected
    after = _decide(entry, references=[_referrer()]).status
    assert after is not None
    assert [each.served_by for each in after.entries or ()] == [expected]


def test_a_load_job_names_the_command_that_serves_its_entry() -> None:
    job = _ended_load()
    pod = _pod(_held_entry(), job_uid=job.uid, held_entries=())
    pod = replace(pod, loaders=(replace(pod.loaders[0], terminated=_finished(COMMAND)),))
    decision = _decide(references=[_referrer()], jobs=[job], pods={job.uid: pod})
    assert decision.status is not None
    assert [each.served_by for each in decision.status.entries or ()] == [COMMAND]
