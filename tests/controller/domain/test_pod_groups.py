"""Which pods form a group, by the labels and owners that their controllers set, and what a false label can do."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operator_support import objects
from operator_support.controllers import (
    job_pod,
    job_set_pod,
    leader_pod,
    owner,
    ray_pod,
    replica_set_pod,
    stateful_set_pod,
    training_pod,
    worker_pod,
)
from operator_support.injection import annotated_pod, find_loader, resolved_modelweights
from operator_support.node_model import GIB, NodeModel, key_of, limited
from operator_support.simulation import Simulation, consumer_pod, failing_pod, prewarming_simulation
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.api.grouprevision import GroupRevisionSpec
from tonnage_operator.api.modelweights import Retention
from tonnage_operator.api.nodecache import EntryState
from tonnage_operator.controller.group_entries import GRACE_PERIOD, GroupEntries
from tonnage_operator.domain.admission.inject import inject
from tonnage_operator.domain.admission.injected_model import AdmissionDenied, resolve_injected_model
from tonnage_operator.domain.admission.pod_groups import (
    build_group_revision,
    find_group,
    has_other_owner,
    object_names,
    weights_of_group,
)
from tonnage_operator.domain.admission.pod_request import parse_annotations
from tonnage_operator.domain.observed.held_entries import parse_held_entries

if TYPE_CHECKING:
    from tonnage_operator.domain.observed.pod import Pod

MODEL = "serving/llama"


def _kept_under(metadata: dict[str, Any]) -> str:
    """Returns the name under which the first pod of a group would keep its revision; empty without a group."""
    group = find_group(metadata)
    return object_names(group, MODEL)[-1] if group else ""


def _joins(later: dict[str, Any], first: dict[str, Any]) -> bool:
    group = find_group(later)
    return group is not None and _kept_under(first) in object_names(group, MODEL)


SAME_GROUP = {
    "of one ReplicaSet": (replica_set_pod("web-5d9c", "r1"), replica_set_pod("web-5d9c", "r1")),
    "of one StatefulSet and template": (stateful_set_pod("db", "s1", "a", 0), stateful_set_pod("db", "s1", "a", 7)),
    "of one Job": (job_pod("train", "j1"), job_pod("train", "j1")),
    "leaders of two groups of a LeaderWorkerSet": (leader_pod("vllm", "l1", "a", 0), leader_pod("vllm", "l1", "a", 1)),
    "a leader and a worker of it": (leader_pod("vllm", "l1", "a", 0), worker_pod("vllm", "w0", "a", 0)),
    "a leader and a worker of another group": (leader_pod("vllm", "l1", "a", 0), worker_pod("vllm", "w1", "a", 1)),
    "two workers without a leader's": (worker_pod("vllm", "w0", "a", 0, 1), worker_pod("vllm", "w0", "a", 0, 2)),
    "head and worker of a RayCluster": (ray_pod("ray", "y1", "head"), ray_pod("ray", "y1", "worker")),
    "two Jobs of a JobSet": (job_set_pod("set", "u1", "driver", "j1"), job_set_pod("set", "u1", "workers", "j2")),
    "master and worker of a PyTorchJob": (training_pod("p", "t1", "master"), training_pod("p", "t1", "worker")),
}

OTHER_GROUP = {
    "of two ReplicaSets": (replica_set_pod("web-5d9c", "r1"), replica_set_pod("web-77aa", "r2")),
    "of two templates of a StatefulSet": (stateful_set_pod("db", "s1", "a"), stateful_set_pod("db", "s1", "b")),
    "of a StatefulSet that was created again": (stateful_set_pod("db", "s1", "a"), stateful_set_pod("db", "s2", "a")),
    "of two templates of a LeaderWorkerSet": (leader_pod("vllm", "l1", "a"), leader_pod("vllm", "l1", "b")),
    "workers of two groups, none of a leader's": (worker_pod("v", "w0", "a", 0), worker_pod("v", "w1", "a", 1)),
    "of two RayClusters of one name": (ray_pod("ray", "y1", "head"), ray_pod("ray", "y2", "head")),
    "of two JobSets": (job_set_pod("set", "u1", "w", "j1"), job_set_pod("set", "u2", "w", "j2")),
    "a Job, and a JobSet's of the same uid": (job_pod("train", "j1"), job_set_pod("train", "u1", "w", "j1")),
}


@pytest.mark.parametrize("pods", SAME_GROUP.values(), ids=SAME_GROUP.keys())
def test_pods_of_one_group(pods: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert _joins(pods[1], pods[0])


@pytest.mark.parametrize("pods", OTHER_GROUP.values(), ids=OTHER_GROUP.keys())
def test_pods_of_different_groups(pods: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert _kept_under(pods[0])
    assert not _joins(pods[1], pods[0])


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {
            "labels": {
                "leaderworkerset.sigs.k8s.io/name": "a",
                "leaderworkerset.sigs.k8s.io/template-revision-hash": "b",
            }
        },
        {"ownerReferences": [owner("v1", "Node", "n", "u")]},
        {"ownerReferences": [owner("example.com/v1", "Cache", "c", "u")]},
        {"ownerReferences": [{**owner("apps/v1", "ReplicaSet", "web", "u"), "controller": False}]},
        {"ownerReferences": [owner("apps/v1", "ReplicaSet", "web", "")]},
    ],
    ids=["alone", "labels without a controller", "of a node", "of an unknown kind", "only owned", "without a uid"],
)
def test_pods_without_a_group_get_the_revision_in_use(metadata: dict[str, Any]) -> None:
    assert find_group(metadata) is None


_TEXT = st.text(max_size=300) | st.sampled_from(["0", "a", "apps/v1", "batch/v1", "ray.io/v1", "kubeflow.org/v9"])
_ANY = st.none() | st.booleans() | st.integers() | _TEXT | st.lists(_TEXT, max_size=2)
_LABELS = [key for pods in SAME_GROUP.values() for key in (*pods[0].get("labels", ()), *pods[1].get("labels", ()))]


@given(
    labels=st.dictionaries(st.sampled_from(_LABELS), _ANY, max_size=6) | _ANY,
    reference=st.fixed_dictionaries(
        {},
        optional={
            "apiVersion": _TEXT | _ANY,
            "kind": st.sampled_from(["ReplicaSet", "StatefulSet", "Job", "RayCluster", "X y"]) | _ANY,
            "name": _TEXT,
            "uid": _TEXT,
            "controller": st.just(True) | _ANY,
        },
    )
    | _ANY,
)
def test_whatever_labels_and_owners_hold_a_group_has_valid_names_and_an_owner_that_is_looked_up(
    labels: Any, reference: Any
) -> None:
    group = find_group({"labels": labels, "ownerReferences": [reference]})
    if group is None:
        return
    for name in object_names(group, MODEL):
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,251}[a-z0-9])?", name)
    assert all(group.owner[key] for key in ("apiVersion", "kind", "name", "uid"))
    if group.owner["kind"] in {"ReplicaSet", "StatefulSet", "Job"}:
        assert group.owner["apiVersion"] in {"apps/v1", "batch/v1"}


@given(st.permutations([*SAME_GROUP.values(), *OTHER_GROUP.values()]), st.text(max_size=5))
def test_all_names_of_different_models_differ(pairs: list[tuple[dict[str, Any], dict[str, Any]]], model: str) -> None:
    group = find_group(pairs[0][0])
    assert group is not None
    assert not set(object_names(group, f"a/{model}")) & set(object_names(group, f"b/{model}"))


def test_what_an_earlier_set_of_the_same_name_has_left_is_not_joined() -> None:
    group, weights = find_group(leader_pod("vllm", "l2", "a")), resolved_modelweights()
    earlier = find_group(leader_pod("vllm", "l1", "a"))
    assert group is not None
    assert earlier is not None
    assert weights.status.resolved is not None
    (name,) = object_names(group, MODEL)
    body = build_group_revision(earlier, name, "serving", weights, weights.status.resolved)
    assert has_other_owner(group, body)
    assert not has_other_owner(earlier, body)


def _kept(namespace: str = "serving") -> tuple[str, GroupRevisionSpec]:
    """Returns the revision that a ReplicaSet in a namespace keeps, under its name."""
    weights, group = (
        resolved_modelweights({"access": {"allowedNamespaces": {"from": "All"}}}),
        find_group(replica_set_pod("web-5d9c", "r1")),
    )
    assert group is not None
    assert weights.status.resolved is not None
    (name,) = object_names(group, MODEL)
    body = build_group_revision(group, name, namespace, weights, weights.status.resolved)
    return name, GroupRevisionSpec.model_validate(body["spec"])


def test_a_later_pod_reads_the_objects_of_its_group_s_revision_at_the_source_that_had_them() -> None:
    """The source was replaced, and nothing of the new one has been listed yet."""
    name, kept = _kept()
    replaced = objects.modelweights({"source": {"s3": {"bucket": "other", "prefix": "new/"}}})
    weights = weights_of_group(replaced, kept)
    request = parse_annotations({names.MODEL: "llama"}, namespace="serving")
    model = resolve_injected_model(request.models[0], weights, (), is_warmed=False, kept=kept.revision, group=name)
    pod = inject(annotated_pod(), (model,), request, objects.INSTALLATION)
    env = {each["name"]: each.get("value", "") for each in find_loader(pod)["env"]}
    plan = contract.decode_plan(env["TONNAGE_PLAN"].replace("$$", "$"))
    (source,) = plan.sources
    assert isinstance(source, contract.S3Source)
    assert (source.bucket, source.prefix) == ("models", "llama/")
    assert [pin.key for pin in source.objects or ()] == [each.key for each in kept.revision.objects or ()]
    (held,) = parse_held_entries(pod["metadata"]["annotations"][names.ENTRIES])
    assert (held.group, held.revision) == (name, kept.revision.revision)


def test_the_list_of_objects_stays_in_the_namespace_of_the_model() -> None:
    assert _kept()[1].revision.objects
    assert _kept("elsewhere")[1].revision.objects is None


def test_an_expected_digest_also_rejects_what_a_group_keeps() -> None:
    name, kept = _kept()
    weights = objects.modelweights({"revision": {"expectedDigest": "sha256:" + "0" * 64}})
    request = parse_annotations({names.MODEL: "llama"}, namespace="serving")
    with pytest.raises(AdmissionDenied, match=f"expectedDigest rejects: .* delete GroupRevision {name}"):
        resolve_injected_model(request.models[0], weights, (), kept=kept.revision, group=name)


def _group_pod(uid: str, **changes: Any) -> Pod:
    simulation = Simulation()
    simulation.finish_resolve()
    pod = consumer_pod(simulation, "n0")
    held = msgspec.structs.replace(pod.held_entries[0], group="replicaset-web")
    return replace(pod, uid=uid, held_entries=(held,), **changes)


def test_an_entry_is_kept_as_long_as_a_group_has_pods_and_some_seconds_longer() -> None:
    now = 0.0
    entries = GroupEntries(lambda: now)
    pods = [_group_pod("a"), _group_pod("b")]
    key = pods[0].held_entries[0].entry_key
    for pod in pods:
        entries.update(None, pod)
    assert entries.remaining({key}, lambda _: True) == {key: float("inf")}
    assert entries.remaining({key}, lambda _: False) == {}, "a copy of a pod holds nothing"
    entries.update(pods[0], None)
    entries.update(pods[1], replace(pods[1], phase="Succeeded"))
    assert entries.remaining({key}, lambda _: True) == {key: GRACE_PERIOD}
    now = GRACE_PERIOD - 1
    assert entries.remaining({key}, lambda _: True) == {key: 1.0}
    now = GRACE_PERIOD
    assert entries.remaining({key}, lambda _: True) == {}
    entries.update(None, pods[0])
    assert entries.remaining({key}, lambda _: True) == {key: float("inf")}


@pytest.mark.parametrize("remaining", [600.0, math.inf])
def test_what_only_a_group_keeps_is_not_evicted_before_a_load_needs_the_room(remaining: float) -> None:
    """So pods with the labels of a group can't hold space that others need, on nodes where they don't run."""
    node = NodeModel(limited(capacity="100Gi"))
    node.load("serving/old", 60 * GIB, Retention.WHILE_REFERENCED)
    key = key_of("serving/old")
    node.group_entries[key] = remaining
    node.drop("serving/old")
    node.settle()
    assert node.state("serving/old") is EntryState.READY
    entry = node.entry("serving/old")
    assert entry is not None
    assert not entry.models, "the object can be deleted"
    assert (node.last.requeue_after == remaining) is (remaining < math.inf)
    node.load("serving/small", 20 * GIB)
    assert node.state("serving/old") is EntryState.READY
    node.want("serving/large", 60 * GIB)
    node.settle()
    assert node.state("serving/old") is None
    assert node.can_begin("serving/large")


@pytest.mark.parametrize(("remaining", "state"), [(10.0, None), (math.inf, EntryState.READY)])
def test_an_object_that_is_deleted_waits_for_its_groups_pods_only(remaining: float, state: EntryState | None) -> None:
    node = NodeModel(limited(capacity="100Gi"))
    node.load("serving/old", 60 * GIB, Retention.WHILE_REFERENCED)
    node.group_entries[key_of("serving/old")] = remaining
    node.deleting.add("serving/old")
    node.jobs.clear()
    node.settle()
    assert node.state("serving/old") is state


def test_without_its_group_the_entry_is_evicted() -> None:
    node = NodeModel(limited(capacity="100Gi"))
    node.load("serving/old", 60 * GIB, Retention.WHILE_REFERENCED)
    node.group_entries[key_of("serving/old")] = 1.0
    node.drop("serving/old")
    node.settle()
    node.group_entries.clear()
    node.settle()
    assert node.state("serving/old") is None


def test_what_a_late_pod_of_a_group_has_loaded_is_recorded_though_no_object_refers_to_it() -> None:
    node = NodeModel(limited(capacity="100Gi"))
    pod = _group_pod("a")
    node.consumers = [pod]
    node.reconcile()
    (entry,) = node.status.entries or ()
    assert (entry.name, entry.state) == (pod.held_entries[0].key, EntryState.READY)


def test_a_failure_of_an_earlier_revision_shows_how_to_move_the_group_on() -> None:
    simulation = prewarming_simulation(1)
    simulation.finish_resolve()
    pod = failing_pod(simulation, "n0", objects.failed_report("DigestMismatch"), exit_code=13)
    held = msgspec.structs.replace(pod.held_entries[0], revision="r-earlier", group="replicaset-web")
    simulation.consumers = [replace(pod, held_entries=(held,))]
    simulation.converge()
    (failure,) = simulation.status["failures"]
    assert "The pod's group keeps r-earlier." in failure["message"]
    assert "kubectl rollout restart" in failure["message"]
