"""The capacity of a medium: room is reserved before a load begins, and unneeded entries make room."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from operator_support.node_model import GIB, MEMORY, NodeModel, key_of, limited
from support.repository import ROOT
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Retention
from tonnage_operator.api.nodecache import CacheEntry, EntryState
from tonnage_operator.domain.installation import MediumLimits
from tonnage_operator.domain.nodecache.capacity import effective_capacity, find_size_problem
from tonnage_operator.domain.observed.held_entries import HeldEntry
from tonnage_operator.domain.observed.job import JobState
from tonnage_operator.domain.observed.pod import LoaderStatus, Pod, TerminatedState

A, B, C, OTHER = "serving/a", "serving/b", "serving/c", "research/o"


def node(capacity: str = "100Gi", **more: Any) -> NodeModel:
    return NodeModel(limited(capacity=capacity, **more))


def condition(model: NodeModel) -> tuple[str, str, str]:
    found = next(each for each in model.status.conditions or () if each.type == "CapacityPressure")
    return found.status.value, found.reason, found.message


def memory(model: NodeModel) -> Any:
    return next(each for each in model.status.media or () if each.name is MEMORY)


def test_a_load_begins_once_its_room_is_reserved() -> None:
    model = node()
    model.want(A, 60 * GIB)
    assert not model.can_begin(A)
    model.reconcile()
    assert model.last.reserves
    assert model.can_begin(A)
    state = memory(model)
    assert (state.capacity_bytes, state.used_bytes, state.reserved_bytes) == (100 * GIB, 0, 60 * GIB)
    assert state.free_bytes == 40 * GIB
    model.begin(A)
    model.reconcile()
    assert (model.state(A), memory(model).reserved_bytes) == (EntryState.LOADING, 60 * GIB)
    model.end(A, JobState.SUCCEEDED)
    model.reconcile()
    assert (memory(model).used_bytes, memory(model).reserved_bytes) == (60 * GIB, 0)


def test_of_two_loads_that_do_not_fit_together_the_earlier_one_goes_on() -> None:
    model = node()
    model.want(B, 60 * GIB)
    model.want(A, 60 * GIB)
    model.reconcile()
    assert (model.can_begin(B), model.can_begin(A)) == (True, False)
    shortage = model.last.shortages[key_of(A)]
    assert (shortage.required_bytes, shortage.free_bytes, shortage.waits) == (60 * GIB, 40 * GIB, False)
    assert shortage.describe("n0", "serving") == (
        "n0 has no room in Memory: 60.0 GiB needed, 40.0 GiB of 100.0 GiB left. serving/b has 60.0 GiB."
    )
    assert condition(model)[:2] == ("True", "LoadsWaiting")
    assert "1 load waits for room; nothing can be evicted" in condition(model)[2]


def test_what_other_namespaces_have_is_a_sum() -> None:
    model = node()
    model.load(OTHER, 50 * GIB)
    model.load("research/p", 20 * GIB)
    model.load(B, 20 * GIB)
    model.want(A, 60 * GIB)
    model.reconcile()
    text = model.last.shortages[key_of(A)].describe("n0", "serving")
    assert text.endswith("10.0 GiB of 100.0 GiB left. serving/b has 20.0 GiB; other namespaces have 70.0 GiB.")
    assert "research" not in text


def test_the_sentences_are_those_of_the_documentation() -> None:
    page = (ROOT / "docs" / "guides" / "operations" / "capacity.md").read_text()
    model = node("400Gi")
    model.load("serving/llama-70b", 1315 * GIB // 10)
    for name in (OTHER, "research/p"):
        model.load(name, 90 * GIB)
    model.want("serving/mixtral", 1315 * GIB // 10)
    model.reconcile()
    assert model.last.shortages[key_of("serving/mixtral")].describe("gpu-1", "serving") in page
    assert condition(model)[2] in page


def test_what_nothing_needs_is_evicted_before_a_load_fails() -> None:
    model = node()
    for name in (A, B):
        model.load(name, 45 * GIB)
    model.drop(A)
    model.want(C, 50 * GIB)
    decision = model.reconcile()
    assert decision.shortages[key_of(C)].waits
    (job,) = decision.apply
    assert job["metadata"]["annotations"][names.CACHE_KEY] == key_of(A).cache_key
    model.settle()
    assert (model.state(A), model.can_begin(C)) == (None, True)


def test_a_smaller_load_does_not_take_the_room_that_is_made_for_an_earlier_one() -> None:
    model = node()
    for name in (A, B):
        model.load(name, 45 * GIB)
    model.drop(A)
    model.want(C, 50 * GIB)
    model.want(OTHER, 10 * GIB)
    model.settle()
    assert (model.can_begin(C), model.can_begin(OTHER)) == (True, False)


def test_a_load_that_can_not_get_room_does_not_hold_up_a_smaller_one() -> None:
    model = node()
    model.load(A, 60 * GIB)
    model.want(B, 60 * GIB)
    model.want(C, 30 * GIB)
    model.reconcile()
    assert (model.can_begin(B), model.can_begin(C)) == (False, True)


def test_above_the_high_watermark_entries_are_evicted_down_to_the_low_one_the_oldest_first() -> None:
    model = node()
    names_ = [f"serving/m{index}" for index in range(12)]
    for name in names_[:9]:
        model.load(name, 10 * GIB)
    for name in names_[:9]:
        model.drop(name)
    model.settle()
    assert (model.reserved, condition(model)[:2]) == (90 * GIB, ("False", "RoomLeft"))
    model.load(names_[9], 5 * GIB)
    assert condition(model)[:2] == ("True", "Evicting")
    model.settle()
    assert (model.reserved, memory(model).pressure) == (75 * GIB, False)
    assert [model.state(name) for name in names_[:3]] == [None, None, EntryState.READY]


def test_between_the_watermarks_nothing_is_evicted() -> None:
    model = node()
    for index in range(8):
        model.load(f"serving/m{index}", 11 * GIB)
        model.drop(f"serving/m{index}")
    model.settle()
    assert model.reserved == 88 * GIB


def test_entries_that_objects_refer_to_are_never_evicted() -> None:
    model = node()
    for name in (A, B):
        model.load(name, 48 * GIB)
    model.want(C, 48 * GIB)
    model.settle()
    assert (model.state(A), model.state(B), model.can_begin(C)) == (EntryState.READY, EntryState.READY, False)
    status, reason, message = condition(model)
    assert (status, reason) == ("True", "LoadsWaiting")
    assert "96.0 GiB of 100.0 GiB are used or reserved" in message


def test_at_most_a_few_cleanups_run_at_a_time_and_the_eviction_goes_on() -> None:
    model = node()
    for index in range(19):
        model.load(f"serving/m{index:02}", 5 * GIB)
    for index in range(19):
        model.drop(f"serving/m{index:02}")
    model.want(A, 60 * GIB)
    assert len(model.reconcile().apply) == 4
    model.settle()
    assert model.can_begin(A)


def test_what_a_dead_loader_left_makes_room_for_a_load_that_waits() -> None:
    """S10: two objects refer to partial entries; neither would fit beside the other."""
    model = node()
    model.want(A, 60 * GIB, Retention.WHILE_REFERENCED)
    model.reconcile()
    model.begin(A)
    model.reconcile()
    model.end(A, JobState.FAILED)
    model.reconcile()
    assert (model.state(A), model.reserved) == (EntryState.PARTIAL, 60 * GIB)
    model.want(B, 60 * GIB, Retention.WHILE_REFERENCED)
    (job,) = model.reconcile().apply
    assert job["metadata"]["annotations"][names.CAUSE] == "Interrupted"
    model.settle()
    entry = model.entry(A)
    assert (entry and entry.bytes, model.on_disk, model.can_begin(B)) == (0, {}, True)
    assert not model.reconcile().apply


def test_what_a_dead_loader_left_stays_while_nothing_needs_the_room() -> None:
    model = node()
    model.want(A, 95 * GIB)
    model.reconcile()
    model.begin(A)
    model.reconcile()
    model.end(A, JobState.FAILED)
    model.settle()
    assert (model.state(A), model.reserved) == (EntryState.PARTIAL, 95 * GIB)
    model.want(A, 95 * GIB)
    assert model.can_begin(A)


def test_a_failed_load_that_left_nothing_gives_its_room_back() -> None:
    model = node()
    model.want(A, 60 * GIB)
    model.reconcile()
    model.begin(A)
    model.reconcile()
    model.end(A, JobState.FAILED, left=0)
    model.want(B, 60 * GIB)
    model.reconcile()
    assert model.can_begin(B)


def test_a_reservation_of_which_no_load_makes_use_ends() -> None:
    model = node()
    model.want(A, 60 * GIB)
    model.reconcile()
    model.drop(A)
    model.reconcile()
    assert model.entry(A) is None
    assert model.reserved == 0


def test_a_restarted_controller_keeps_running_loads_and_their_room() -> None:
    model = node()
    model.want(A, 60 * GIB)
    model.reconcile()
    model.begin(A)
    model.reconcile()
    model.requests.clear()
    model.want(B, 60 * GIB)
    model.reconcile()
    assert (model.state(A), model.can_begin(B)) == (EntryState.LOADING, False)


def test_a_capacity_below_what_is_there_stops_loads_and_evicts_only_what_nothing_needs() -> None:
    model = node()
    for name, size in ((A, 40), (B, 40)):
        model.load(name, size * GIB)
    model.drop(A)
    model.installation = limited(capacity="30Gi")
    model.settle()
    assert (model.state(A), model.state(B)) == (None, EntryState.READY)
    state = memory(model)
    assert (state.capacity_bytes, state.used_bytes, state.free_bytes) == (30 * GIB, 40 * GIB, 0)
    model.want(C, GIB)
    model.reconcile()
    assert not model.can_begin(C)


def test_a_file_system_that_is_smaller_than_the_capacity_bounds_it_also_after_a_restart() -> None:
    model = node(minFree="10%")
    model.reported_media = {MEMORY: contract.Medium(filesystem="tmpfs", capacity_bytes=50 * GIB, free_bytes=50 * GIB)}
    model.want(A, 46 * GIB)
    model.reconcile()
    assert (memory(model).capacity_bytes, model.can_begin(A)) == (45 * GIB, False)
    model.reported_media = {}
    model.reconcile()
    assert (memory(model).capacity_bytes, memory(model).file_system_bytes) == (45 * GIB, 50 * GIB)


def test_entries_that_an_earlier_release_recorded_count() -> None:
    model = node()
    old = {"name": key_of(A).cache_key, "medium": "Memory", "state": "Ready", "bytes": 70 * GIB, "models": [A]}
    model.status = model.status.model_copy(update={"boot_id": "boot-1", "entries": (CacheEntry.model_validate(old),)})
    model.references[A] = Retention.WHILE_REFERENCED
    model.want(B, 40 * GIB)
    model.reconcile()
    assert (memory(model).used_bytes, model.can_begin(B)) == (70 * GIB, False)


def test_a_reboot_frees_the_memory() -> None:
    model = node()
    model.load(A, 80 * GIB)
    model.boot = "boot-2"
    model.want(B, 80 * GIB)
    model.reconcile()
    assert model.can_begin(B)


def test_a_namespace_has_its_own_bound_and_makes_room_from_its_own_entries() -> None:
    model = node(namespaceCapacity="50Gi")
    model.load(OTHER, 40 * GIB)
    model.drop(OTHER)
    model.load(A, 30 * GIB)
    model.drop(A)
    model.want(B, 30 * GIB)
    decision = model.reconcile()
    shortage = decision.shortages[key_of(B)]
    assert (shortage.namespace, shortage.waits, shortage.free_bytes) == ("serving", True, 20 * GIB)
    assert shortage.describe("n0", "serving").startswith(
        "Namespace serving on n0 has no room in Memory: 30.0 GiB needed, 20.0 GiB of 50.0 GiB left. "
    )
    usage = {each.name: (each.used_bytes, each.reserved_bytes) for each in memory(model).namespaces}
    assert usage == {"serving": (30 * GIB, 0), "research": (40 * GIB, 0)}
    model.settle()
    assert (model.state(A), model.state(OTHER), model.can_begin(B)) == (None, EntryState.READY, True)


def test_without_a_capacity_nothing_waits_and_nothing_is_evicted_ahead_of_need() -> None:
    model = NodeModel(limited())
    model.reported_media = {MEMORY: contract.Medium(filesystem="tmpfs", capacity_bytes=100 * GIB, free_bytes=7 * GIB)}
    for name in (A, B, C):
        model.load(name, 60 * GIB)
        model.drop(name)
    model.settle()
    state = memory(model)
    assert (state.capacity_bytes, state.free_bytes, state.used_bytes) == (100 * GIB, 7 * GIB, 180 * GIB)
    assert not state.pressure
    assert not model.last.shortages


def pod_of(name: str, model: str, loader: LoaderStatus, size: int = 60) -> Pod:
    """Returns a pod that requests a model."""
    held = HeldEntry(
        container=names.LOADER_CONTAINER,
        namespace=model.partition("/")[0],
        name=model.partition("/")[2],
        uid=model,
        revision="r-1",
        key=key_of(model).cache_key,
        bytes=size * GIB,
    )
    return Pod(
        namespace=held.namespace, name=name, uid=name, role=names.ROLE_INJECTED, model_uid="", job_uid="", node="n0",
        phase="Pending", reason="", message="", created=f"2026-01-01T00:00:0{len(name)}Z", unschedulable_message="",
        held_entries=(held,), loaders=(loader,), deleting=False,
    )  # fmt: skip


WAITING = LoaderStatus(names.LOADER_CONTAINER, False, None, "", "", running=True, started=True)


def test_loaders_of_pods_get_room_in_their_order_and_jobs_wait_for_them() -> None:
    model = node()
    model.references = dict.fromkeys((A, B, C), Retention.WHILE_REFERENCED)
    model.consumers = [pod_of("pod", A, WAITING), pod_of("later-pod", B, WAITING)]
    model.want(C, 30 * GIB)
    model.reconcile()
    assert [model.entry(name).reserved_bytes // GIB for name in (A, B)] == [60, 0]  # type: ignore[union-attr]
    assert list(model.last.shortages) == [key_of(B)]
    assert model.can_begin(C)


def test_a_loader_that_starts_again_after_a_refusal_asks_again() -> None:
    model = node()
    model.load(B, 60 * GIB)
    report = contract.Report(outcome=contract.Outcome.FAILED, reason="InsufficientSpace", message="No room.")
    ended = TerminatedState(27, "Error", contract.termination_message(report).decode(), "2026-01-01T00:00:00Z")
    backing_off = LoaderStatus(names.LOADER_CONTAINER, False, ended, "CrashLoopBackOff", "", restarts=1, started=True)
    model.references[A] = Retention.WHILE_REFERENCED
    model.consumers = [pod_of("pod", A, backing_off)]
    model.reconcile()
    assert (model.last.shortages, model.state(A)) == ({}, EntryState.PARTIAL)
    model.consumers = [pod_of("pod", A, replace(backing_off, waiting_reason="", running=True))]
    model.reconcile()
    assert list(model.last.shortages) == [key_of(A)]
    model.drop(B)
    model.settle()
    assert model.entry(A).reserved_bytes == 60 * GIB  # type: ignore[union-attr]


def test_entries_of_a_medium_that_the_administrator_has_disabled_are_no_obstacle() -> None:
    model = node()
    old = {"name": "serving/r-d", "medium": "Disk", "state": "Ready", "bytes": GIB, "reservedBytes": 1}
    model.status = model.status.model_copy(update={"entries": (CacheEntry.model_validate(old),)})
    body = model.installation.model_dump(mode="json", by_alias=True, exclude_none=True)
    del body["media"]["Disk"]
    model.installation = type(model.installation).model_validate(body)
    model.want(A, 60 * GIB)
    model.reconcile()
    assert model.can_begin(A)


@pytest.mark.parametrize("is_full", [False, True])
def test_a_load_that_a_limit_refused_evicts_nothing_of_others(is_full: bool) -> None:
    model = node(namespaceCapacity="50Gi")
    model.load(OTHER, 40 * GIB)
    model.drop(OTHER)
    model.load(B, 40 * GIB)
    model.want(A, 10 * GIB)
    model.reconcile()
    model.begin(A)
    model.reconcile()
    free = GIB if is_full else 100 * GIB
    medium = contract.Medium(filesystem="tmpfs", capacity_bytes=200 * GIB, free_bytes=free)
    model.end(A, JobState.FAILED, left=0, reason="InsufficientSpace", medium=medium)
    assert bool(model.reconcile().apply) is is_full


@pytest.mark.parametrize(
    ("limits", "value"),
    [
        (MediumLimits(capacity=GIB), "cache.memory.capacity"),
        (MediumLimits(namespace_capacity=GIB), "cache.memory.namespaceCapacity"),
        (MediumLimits(max_entry_size=GIB), "cache.memory.maxEntrySize"),
    ],
)
def test_a_model_that_no_node_may_ever_hold_is_named_with_the_limit(limits: MediumLimits, value: str) -> None:
    assert value in find_size_problem(GIB + 1, limits, MEMORY)
    assert not find_size_problem(GIB, limits, MEMORY)


def test_the_effective_capacity_leaves_what_must_stay_free() -> None:
    limits = MediumLimits(capacity=100)
    assert effective_capacity(limits, file_system_bytes=0, min_free_bytes=10) == 100
    assert effective_capacity(limits, file_system_bytes=500, min_free_bytes=50) == 100
    assert effective_capacity(limits, file_system_bytes=80, min_free_bytes=8) == 72
    assert effective_capacity(MediumLimits(), file_system_bytes=80, min_free_bytes=8) == 0


class AnyOrder(RuleBasedStateMachine):
    """Loads, failures, crashes, evictions, restarts and reports in any order never take more than the capacity."""

    models = (A, B, C, OTHER, "research/p")
    pick = st.sampled_from(models)

    @initialize(namespaces=st.booleans())
    def create(self, namespaces: bool) -> None:
        self.node = node("100Gi", **({"namespaceCapacity": "70Gi"} if namespaces else {}))
        self.sizes = dict(zip(self.models, (60, 45, 30, 55, 20), strict=True))
        self.bound = 70 * GIB if namespaces else 100 * GIB

    @rule(model=pick, retention=st.sampled_from(Retention))
    def want(self, model: str, retention: Retention) -> None:
        if self.node.state(model) is not EntryState.READY and not self.node.running(model):
            self.node.want(model, self.sizes[model] * GIB, retention)

    @rule(model=pick)
    def drop(self, model: str) -> None:
        self.node.drop(model)

    @rule()
    def reconcile(self) -> None:
        self.node.reconcile()

    @rule(model=pick)
    def begin(self, model: str) -> None:
        if self.node.can_begin(model):
            self.node.begin(model)

    @rule(model=pick, left=st.sampled_from([None, 0]))
    def end(self, model: str, left: int | None) -> None:
        state = JobState.FAILED if left == 0 else JobState.SUCCEEDED
        self.node.end(model, state, left=left)

    @rule(model=pick)
    def crash(self, model: str) -> None:
        self.node.end(model, JobState.FAILED)

    @rule()
    def clean(self) -> None:
        self.node.clean()

    @precondition(lambda self: self.node.requests)
    @rule()
    def restart_controller(self) -> None:
        self.node.requests.clear()

    @invariant()
    def never_over_capacity(self) -> None:
        assert self.node.reserved <= 100 * GIB
        assert self.node.written <= 100 * GIB
        for namespace in ("serving", "research"):
            mine = sum(size for key, size in self.node.on_disk.items() if key.cache_key.startswith(namespace))
            assert mine <= self.bound

    @invariant()
    def what_is_needed_stays(self) -> None:
        for model in self.node.references:
            if self.node.state(model) is EntryState.READY:
                assert key_of(model) in self.node.on_disk

    def teardown(self) -> None:
        """One of the loads that want room always gets it, once the others are over."""
        if not hasattr(self, "node"):
            return
        for model in self.models:
            self.node.end(model, JobState.FAILED, left=0)
            self.node.drop(model)
        self.node.want(A, self.sizes[A] * GIB)
        for _ in range(30):
            self.node.now += timedelta(hours=1)
            self.node.settle()
        assert self.node.can_begin(A) or self.node.state(A) is EntryState.READY


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
