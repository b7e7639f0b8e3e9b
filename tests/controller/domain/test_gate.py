"""When a node that was born with a startup taint may take pods: the pure decision."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operator_support import objects
from operator_support.injection import resolved_modelweights
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.api.nodecache import EntryKey
from tonnage_operator.domain.gate.decision import GateDecision, GateSnapshot, decide_gate
from tonnage_operator.domain.gate.observed import (
    CONDITION_TYPE,
    GatingModel,
    NodeEntries,
    parse_gated_node,
    parse_gating_model,
    parse_node_entries,
)
from tonnage_operator.domain.installation import GateMode
from tonnage_operator.domain.modelweights.node_selection import desired_nodes
from tonnage_operator.domain.observed.model_weights import InvalidModelWeights
from tonnage_operator.domain.observed.node import parse_node
from tonnage_operator.domain.specs import jobs

Body = dict[str, Any]

BORN = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
KEY = "tonnage.dev/not-warm"
OTHER_KEY = "startup-taint.cluster-autoscaler.kubernetes.io/tonnage"
INSTALLATION = objects.INSTALLATION.model_copy(
    update={
        "gate": objects.INSTALLATION.gate.model_copy(
            update={"enabled": True, "taints": (KEY, OTHER_KEY), "max_timeout": "30m"}
        )
    }
)
CONDITION_INSTALLATION = INSTALLATION.model_copy(
    update={"gate": INSTALLATION.gate.model_copy(update={"mode": GateMode.CONDITION})}
)
MODEL_KEY = EntryKey("r-1", Medium.MEMORY)


def _node(
    *taints: str, labels: dict[str, str] | None = None, conditions: list[Body] | None = None, **more: Any
) -> Body:
    body = objects.node("new", labels=labels, taints=[{"key": key, "effect": "NoSchedule"} for key in taints], **more)
    body["metadata"]["creationTimestamp"] = _text(BORN)
    body["status"]["conditions"] += conditions or []
    return body


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _model(name: str = "llama", *, timeout: str = "10m", gate: Body | None = None, **placement: Any) -> GatingModel:
    spec = {"placement": {"prewarm": "AllMatching", "gate": {"timeout": timeout, **(gate or {})}, **placement}}
    body = objects.modelweights_manifest(spec, name=name, uid=f"uid-{name}")
    return replace(parse_gating_model(body, INSTALLATION), key=MODEL_KEY, problem="")


def _entries(*ready: EntryKey, uid: str = "uid-new", boot_id: str = "boot-1") -> NodeEntries:
    return NodeEntries("new", frozenset({uid}), boot_id, frozenset(ready), frozenset())


def _decide(
    node: Body,
    *models: GatingModel,
    after: float = 0.0,
    entries: NodeEntries | None = None,
    installation: Any = INSTALLATION,
) -> GateDecision:
    """Returns the decision ``after`` seconds since the node's creation."""
    now = BORN + timedelta(seconds=after)
    return decide_gate(GateSnapshot(now, installation, parse_gated_node(node), models, entries))


def _reasons(decision: GateDecision) -> list[str]:
    return [event.reason for event in decision.events]


def test_a_node_waits_for_each_model_that_matches_it_and_opens_when_all_are_warm() -> None:
    second = replace(_model("second"), key=EntryKey("r-2", Medium.DISK))
    node = _node(KEY)
    waiting = _decide(node, _model(), second, entries=_entries(MODEL_KEY))
    assert (waiting.remove, waiting.requeue_after) == ((), 600)
    assert "waiting for serving/second (it is not loaded)" in waiting.events[0].message
    opened = _decide(node, _model(), second, entries=_entries(MODEL_KEY, EntryKey("r-2", Medium.DISK)))
    assert opened.remove == (KEY,)
    assert _reasons(opened) == ["GateOpened"]


def test_after_the_timeout_the_node_opens_and_names_what_is_missing_and_why() -> None:
    failed = replace(_model("failed"), failures={"new": "AccessDenied"})
    unresolved = replace(_model("unresolved", timeout="1m"), key=None, problem="SourceNotFound")
    decision = _decide(_node(KEY), failed, unresolved, after=600)
    assert decision.remove == (KEY,)
    (event,) = decision.events
    assert event.warning
    assert (
        "serving/failed (AccessDenied), serving/unresolved (its source is not resolved: SourceNotFound)"
        in event.message
    )
    assert [model.name for model, _ in decision.model_events] == ["failed", "unresolved"]
    assert all(each.warning for _, each in decision.model_events)


@pytest.mark.parametrize(
    ("spec", "status"),
    [
        ({"suspend": True}, {}),
        ({"placement": {"prewarm": "AllMatching"}}, {}),
        ({}, {"conditions": [{"type": "Accepted", "status": "False", "reason": "MediumNotConfigured"}]}),
        ({"placement": {"gate": {"taints": ["example.com/other"]}}}, {}),
    ],
)
def test_no_node_waits_for_a_model_that_no_job_would_load(spec: Body, status: Body) -> None:
    gated = {"placement": {"prewarm": "AllMatching", "gate": {}}} if "placement" not in spec else {}
    for each in status.get("conditions", ()):
        each |= {"message": "", "lastTransitionTime": _text(BORN)}
    body = objects.modelweights_manifest(objects.deep_merge(gated, spec), status=status)
    assert not parse_gating_model(body, INSTALLATION).taints


def test_no_node_waits_for_a_model_that_is_being_deleted_or_larger_than_any_node_may_hold() -> None:
    gated = {"placement": {"prewarm": "AllMatching", "gate": {}}}
    manifest = objects.modelweights_manifest(gated)
    assert parse_gating_model(manifest, INSTALLATION).taints == {KEY, OTHER_KEY}
    manifest["metadata"]["deletionTimestamp"] = _text(BORN)
    assert not parse_gating_model(manifest, INSTALLATION).taints
    weights = resolved_modelweights(gated)
    status = weights.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    resolved = objects.modelweights_manifest(gated, status=status)
    assert parse_gating_model(resolved, INSTALLATION).taints
    memory = INSTALLATION.media[Medium.MEMORY].model_copy(update={"max_entry_size": "1Gi"})
    small = INSTALLATION.model_copy(update={"media": {**INSTALLATION.media, Medium.MEMORY: memory}})
    assert not parse_gating_model(resolved, small).taints


@pytest.mark.parametrize(
    "gate", [{"timeout": "soon"}, {"taints": ["not a key!"]}, {"taints": []}, "yes", {"a": {"b": 1}}]
)
def test_an_object_with_an_invalid_gate_is_not_read_so_no_node_waits_for_it(gate: Any) -> None:
    body = objects.modelweights_manifest({"placement": {"prewarm": "AllMatching"}})
    body["spec"]["placement"]["gate"] = gate
    if gate == {"a": {"b": 1}}:  # a field of a later release is no error
        assert parse_gating_model(body, INSTALLATION).taints
        return
    with pytest.raises(InvalidModelWeights, match=r"placement\.gate"):
        parse_gating_model(body, INSTALLATION)


def test_the_chart_limits_how_long_a_model_may_keep_pods_from_a_node() -> None:
    assert _model(timeout="100h").timeout == 1800
    assert _decide(_node(KEY), _model(timeout="100h"), after=1800).remove == (KEY,)


def test_each_taint_waits_for_the_models_that_name_it() -> None:
    only_other = _model(gate={"taints": [OTHER_KEY]})
    assert _decide(_node(KEY, OTHER_KEY), only_other).remove == (KEY,)
    assert _decide(_node(KEY, OTHER_KEY), only_other, entries=_entries(MODEL_KEY)).remove == (OTHER_KEY, KEY)


def test_taints_that_the_chart_does_not_name_are_never_removed() -> None:
    for key in ("example.com/a", "node.kubernetes.io/not-ready", f"{KEY}-2"):
        assert _decide(_node(key)).remove == ()


def test_a_record_of_an_earlier_node_of_the_name_or_of_an_earlier_boot_does_not_count() -> None:
    assert not _decide(_node(KEY), _model(), entries=_entries(MODEL_KEY, uid="uid-of-the-old-one")).remove
    assert not _decide(_node(KEY), _model(), entries=_entries(MODEL_KEY, boot_id="boot-0")).remove
    on_disk = EntryKey("r-1", Medium.DISK)
    model = replace(_model(), key=on_disk)
    assert _decide(_node(KEY), model, entries=_entries(on_disk, boot_id="boot-0")).remove == (KEY,)


def test_an_entry_counts_when_it_is_complete() -> None:
    body = {
        "metadata": {"name": "new", "ownerReferences": [{"kind": "Node", "uid": "uid-new"}]},
        "status": {
            "bootID": "boot-1",
            "entries": [
                {"name": "r-1", "medium": "Memory", "state": "Ready"},
                {"name": "r-2", "medium": "Memory", "state": "Ready", "ranks": "0-3"},
                {"name": "r-3", "medium": "Memory", "state": "Loading"},
            ],
        },
    }
    entries, node = parse_node_entries(body), parse_node(_node())
    warm = [name for name in ("r-1", "r-2", "r-3") if entries.is_warm(node, EntryKey(name, Medium.MEMORY))]
    assert warm == ["r-1"]
    loading = _decide(_node(KEY), replace(_model(), key=EntryKey("r-3", Medium.MEMORY)), entries=entries)
    assert "(it is loading)" in loading.events[0].message


def test_a_node_does_not_wait_for_models_whose_jobs_do_not_tolerate_a_taint_that_stays() -> None:
    node = _node(KEY, "nvidia.com/gpu")
    assert _decide(node, _model()).remove == (KEY,)
    tolerant = _model(tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}])
    assert _decide(node, tolerant).remove == ()


@pytest.mark.parametrize(
    "key",
    [
        "node.kubernetes.io/not-ready",
        "node.cloudprovider.kubernetes.io/uninitialized",
        "node.cilium.io/agent-not-ready",
    ],
)
def test_until_a_node_is_complete_it_waits_even_if_no_model_matches_it_yet(key: str) -> None:
    # A cloud's controller removes its taint together with setting labels that placement may select.
    gpu = _model(nodeSelector={"pool": "gpu"})
    assert _decide(_node(KEY, key), gpu).remove == ()
    assert _decide(_node(KEY, ready=False), gpu).remove == ()
    assert _decide(_node(KEY, key), gpu, after=1800).remove == (KEY,)
    assert _decide(_node(KEY), gpu).remove == (KEY,)
    assert _decide(_node(KEY, labels={"pool": "gpu"}), gpu).remove == ()


def _with_change(node: Body, after: float) -> Body:
    entry = {"manager": "m", "fieldsV1": {"f:spec": {"f:taints": {}}}, "time": _text(BORN + timedelta(seconds=after))}
    node["metadata"]["managedFields"] = [{"manager": "k", "fieldsV1": {"f:metadata": {}}, "time": "never"}, entry]
    return node


def test_a_taint_that_comes_again_begins_a_new_timeout() -> None:
    day = 86_400
    assert _decide(_with_change(_node(KEY), day), _model(), after=day + 599).remove == ()
    assert _decide(_with_change(_node(KEY), day), _model(), after=day + 600).remove == (KEY,)
    stated = _node(KEY)
    stated["spec"]["taints"][0]["timeAdded"] = _text(BORN + timedelta(seconds=900))
    assert _decide(stated, _model(), after=1499).remove == ()
    assert _decide(stated, _model(), after=1500).remove == (KEY,)


def test_a_node_that_flaps_after_its_birth_is_not_kept_longer() -> None:
    assert _decide(_with_change(_node(KEY), 599), _model(), after=600).remove == (KEY,)


def test_a_node_from_the_future_waits_and_opens_when_it_is_warm() -> None:
    assert _decide(_node(KEY), _model(), after=-3600).requeue_after == 4200
    assert _decide(_node(KEY), _model(), after=-3600, entries=_entries(MODEL_KEY)).remove == (KEY,)


def test_messages_about_many_models_stay_short() -> None:
    models = [_model(f"model-{index:04}" + "x" * 200) for index in range(500)]
    waiting, late = _decide(_node(KEY), *models), _decide(_node(KEY), *models, after=600)
    for decision in (waiting, late):
        assert all(len(event.message) <= 1000 for event in decision.events)
    assert len(late.model_events) == 50


_MODELS = st.lists(
    st.builds(
        lambda index, timeout, pool, key: replace(
            _model(f"m{index}", timeout=f"{timeout}s", nodeSelector={"pool": pool}), key=EntryKey(key, Medium.MEMORY)
        ),
        st.integers(0, 99),
        st.integers(0, 4000),
        st.sampled_from(["gpu", "cpu"]),
        st.sampled_from(["r-1", "r-2", "r-3"]),
    ),
    max_size=6,
    unique_by=lambda model: model.name,
)


@given(
    models=_MODELS,
    ready=st.sets(st.sampled_from(["r-1", "r-2", "r-3"])),
    after=st.integers(-100, 5000),
    taints=st.sets(st.sampled_from([KEY, OTHER_KEY, "example.com/a"]), min_size=1),
)
def test_a_node_is_closed_exactly_while_a_matching_model_is_cold_and_in_time(
    models: list[GatingModel], ready: set[str], after: int, taints: set[str]
) -> None:
    tolerated = [replace(each, placement=each.placement.model_copy(update={"tolerations": None})) for each in models]
    entries = _entries(*(EntryKey(key, Medium.MEMORY) for key in ready))
    node = _node(*sorted(taints), labels={"pool": "gpu"})
    decision = _decide(node, *tolerated, after=after, entries=entries)
    cold = [
        each
        for each in tolerated
        if each.placement.node_selector == {"pool": "gpu"} and each.key and each.key.cache_key not in ready
    ]
    closed = any(after < each.timeout for each in cold) and "example.com/a" not in taints
    ours = taints & {KEY, OTHER_KEY}
    assert set(decision.remove) == (set() if closed else ours)
    assert (decision.requeue_after is not None) == (closed and bool(ours))
    # A restart decides the same, and what it posts has the same names.
    again = _decide(node, *reversed(tolerated), after=after, entries=entries)
    assert again.remove == decision.remove
    assert {each.name("new", "u") for each in again.events} == {each.name("new", "u") for each in decision.events}
    # Time only opens: once removed, later decisions remove as well.
    if decision.remove:
        assert _decide(node, *tolerated, after=after + 1, entries=entries).remove == decision.remove


def _condition(status: str, since: float, message: str = "") -> list[Body]:
    time = _text(BORN + timedelta(seconds=since))
    return [{"type": CONDITION_TYPE, "status": status, "reason": "x", "message": message, "lastTransitionTime": time}]


def test_as_a_condition_the_gate_is_false_while_it_waits_and_true_once() -> None:
    def decide(node: Body, *models: GatingModel, **more: Any) -> GateDecision:
        return _decide(node, *models, installation=CONDITION_INSTALLATION, **more)

    waiting = decide(_node(KEY), _model())
    assert waiting.remove == ()
    assert waiting.condition
    assert (waiting.condition.status, waiting.condition.reason) == (False, "GateWaiting")
    opened = decide(_node(KEY, conditions=_condition("False", 0)), _model(), entries=_entries(MODEL_KEY)).condition
    assert opened
    assert (opened.status, opened.reason) == (True, "GateOpened")
    late = decide(_node(KEY, conditions=_condition("False", 100)), _model(), after=700)
    assert late.condition
    assert (late.condition.status, late.condition.reason) == (True, "GateTimedOut")
    assert "serving/llama" in late.condition.message
    assert decide(_node(KEY, conditions=_condition("False", 100)), _model(), after=699).condition
    # It stays true, so that a new model closes no node that takes pods already.
    assert decide(_node(conditions=_condition("True", 0)), _model()) == GateDecision()
    # Nodes that neither have the taint nor are matched by a model are left alone; tainted ones must not hang.
    assert decide(_node(), _model(nodeSelector={"pool": "gpu"})) == GateDecision()
    tainted = decide(_node(KEY), _model(nodeSelector={"pool": "gpu"})).condition
    assert tainted
    assert tainted.status


def test_load_and_resolve_jobs_tolerate_the_taints_that_wait_for_their_model() -> None:
    weights = resolved_modelweights({"placement": {"prewarm": "AllMatching", "gate": {"taints": [OTHER_KEY]}}})
    node = parse_node(_node(OTHER_KEY))
    seen = weights.status.resolved
    assert seen
    wanted = {"key": OTHER_KEY, "operator": "Exists"}
    load = jobs.build_load_job(weights, seen, INSTALLATION, node=node, attempt=1)
    resolve = jobs.build_resolve_job(weights, INSTALLATION, round_="", attempt=1)
    for job in (load, resolve):
        assert job["spec"]["template"]["spec"]["tolerations"] == [wanted]
    placement = weights.spec.placement
    for installation, expected in ((INSTALLATION, ["new"]), (objects.INSTALLATION, [])):
        found = desired_nodes(placement, [node], installation, seed="", warm=(), loading=())
        assert [each.name for each in found] == expected
    both = parse_node(_node(OTHER_KEY, KEY))
    assert not desired_nodes(placement, [both], INSTALLATION, seed="", warm=(), loading=())
