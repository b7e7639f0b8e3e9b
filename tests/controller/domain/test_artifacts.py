"""Directories for what engines compile: who gets which one, what is recorded, and when they are emptied."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operator_support import objects
from operator_support.injection import (
    annotated_pod,
    find_loader,
    inject_pod,
    own_containers,
    plain_env,
    resolved_modelweights,
)
from tonnage import contract
from tonnage.contract.report import MAX_ARTIFACTS_BYTES
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium, Retention
from tonnage_operator.api.nodecache import CacheEntry, EntryState, NodeCacheStatus
from tonnage_operator.domain import naming
from tonnage_operator.domain.admission.injected_model import AdmissionDenied
from tonnage_operator.domain.installation import ArtifactsSettings
from tonnage_operator.domain.nodecache.artifacts import artifacts_by_object
from tonnage_operator.domain.nodecache.reconcile import NodeDecision, decide_node
from tonnage_operator.domain.nodecache.snapshot import ModelReferences, NodeSnapshot
from tonnage_operator.domain.observed.held_entries import HeldEntry, format_held_entries, parse_held_entries
from tonnage_operator.domain.observed.node import parse_node
from tonnage_operator.domain.observed.pod import LoaderStatus, Pod, TerminatedState

ASKED = {names.MODEL: "llama", names.ARTIFACTS: "true"}
FOLDER = "/var/cache/tonnage"
VARIABLES = {
    "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE", "DG_JIT_CACHE_DIR",
    "TILELANG_CACHE_DIR", "CUTE_DSL_CACHE_DIR", "CUDA_CACHE_PATH", "SGLANG_CACHE_DIR", "SGLANG_DG_CACHE_DIR",
}  # fmt: skip


def _directories(pod: dict[str, Any]) -> dict[str, str]:
    """Returns the path on the node of each directory of artifacts, by volume."""
    volumes = pod["spec"]["volumes"]
    return {each["name"]: each["hostPath"]["path"] for each in volumes if "artifacts" in each["name"]}


def _held(pod: dict[str, Any]) -> list[HeldEntry]:
    return [each for each in parse_held_entries(pod["metadata"]["annotations"][names.ENTRIES]) if each.is_artifacts]


def test_an_engine_gets_a_writable_folder_on_the_disk_and_the_variables_that_lead_to_it() -> None:
    pod = inject_pod(annotated_pod(ASKED))
    (server,) = own_containers(pod)
    ((volume, path),) = _directories(pod).items()
    disk = objects.INSTALLATION.media[Medium.DISK].host_path
    assert naming.is_artifacts_key(path.removeprefix(f"{disk}/"))
    assert path.startswith(f"{disk}/serving/a-")
    (mount,) = [each for each in server["volumeMounts"] if each["name"] == volume]
    assert mount == {"name": volume, "mountPath": FOLDER, "subPath": "files"}
    env = plain_env(server)
    assert env["TONNAGE_ARTIFACTS_PATH"] == FOLDER
    assert all(env[name].startswith(f"{FOLDER}/") for name in VARIABLES)


def test_the_loader_prepares_the_folder_and_the_holder_does_not_see_it() -> None:
    pod = inject_pod(annotated_pod(ASKED))
    loader, holder = find_loader(pod), find_loader(pod, names.HOLDER_CONTAINER)
    ((volume, path),) = _directories(pod).items()
    prepared = f"/artifacts/{path.rpartition('/')[2]}"
    assert loader["args"][-2:] == ["--artifacts", prepared]
    assert {"name": volume, "mountPath": prepared} in loader["volumeMounts"]
    assert loader["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["DAC_OVERRIDE", "FOWNER"]}
    assert volume not in {each["name"] for each in holder["volumeMounts"]}
    assert holder["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_without_the_annotation_nothing_changes() -> None:
    off = inject_pod(annotated_pod({names.MODEL: "llama", names.ARTIFACTS: "false"}))
    plain = inject_pod(annotated_pod())
    assert off["spec"] == plain["spec"]
    assert not _directories(plain)


def test_a_variable_of_the_container_itself_is_left_alone() -> None:
    own = [{"name": "TRITON_CACHE_DIR", "value": "/own"}, {"name": "VLLM_CACHE_ROOT", "valueFrom": {"fieldRef": {}}}]
    containers = [{"name": "server", "image": "vllm", "env": own}]
    (server,) = own_containers(inject_pod(annotated_pod(ASKED, containers=containers)))
    assert [each for each in server["env"] if each["name"] in {"TRITON_CACHE_DIR", "VLLM_CACHE_ROOT"}] == own


def _path(image: str = "vllm:1", *, user: int | None = None, pod_user: int | None = None, model: str = "llama") -> str:
    container: dict[str, Any] = {"name": "server", "image": image}
    spec: dict[str, Any] = {"containers": [container]}
    if user is not None:
        container["securityContext"] = {"runAsUser": user}
    if pod_user is not None:
        spec["securityContext"] = {"runAsUser": pod_user}
    weights = resolved_modelweights(name=model)
    (path,) = _directories(inject_pod(annotated_pod({**ASKED, names.MODEL: model}, **spec), weights)).values()
    return path


def test_pods_share_a_folder_if_model_image_and_user_are_the_same() -> None:
    assert _path() == _path()
    assert _path(user=5, pod_user=6) == _path(user=5) == _path(pod_user=5)
    assert len({_path(), _path("vllm:2"), _path(user=0), _path(user=5), _path(model="other")}) == 5


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.text(max_size=9)] * 3, st.none() | st.integers(0, 9)), unique=True, max_size=9))
def test_no_two_namespaces_models_images_or_users_ever_share_a_folder(parts: list[Any]) -> None:
    keys = [naming.artifacts_key("ns", *rest) for _, *rest in parts]
    assert len(set(keys)) == len({tuple(rest) for _, *rest in parts})
    assert all(naming.is_artifacts_key(key) and naming.is_cache_key(key) for key in keys)
    assert not {naming.artifacts_key("other", *rest) for _, *rest in parts} & set(keys)


def test_containers_with_different_images_have_folders_of_their_own() -> None:
    containers = [{"name": name, "image": image} for name, image in (("a", "vllm"), ("b", "proxy"), ("c", "vllm"))]
    pod = inject_pod(annotated_pod(ASKED, containers=containers))
    mounts = [
        {each["name"] for each in container["volumeMounts"] if each["mountPath"] == FOLDER}
        for container in own_containers(pod)
    ]
    assert mounts[0] == mounts[2] != mounts[1]
    assert [each.image for each in _held(pod)] == ["vllm", "proxy"]


def test_a_container_that_another_webhook_adds_gets_no_artifacts() -> None:
    pod = inject_pod(annotated_pod(ASKED))
    pod["spec"]["containers"].append({"name": "mesh", "image": "proxy"})
    _, added = own_containers(inject_pod(pod))
    assert FOLDER not in {each["mountPath"] for each in added["volumeMounts"]}
    assert "TONNAGE_ARTIFACTS_PATH" not in plain_env(added)


MEMORY_ONLY = objects.INSTALLATION.model_copy(
    update={"media": {Medium.MEMORY: objects.INSTALLATION.media[Medium.MEMORY]}}
)
TURNED_OFF = objects.INSTALLATION.model_copy(update={"artifacts": ArtifactsSettings(enabled=False)})


@pytest.mark.parametrize(
    ("installation", "spec", "pod", "message"),
    [
        (MEMORY_ONLY, {}, {}, "medium Disk, which this installation doesn't have (cache.disk.enabled)"),
        (TURNED_OFF, {}, {}, "turned off in this installation (artifacts.enabled)"),
        (
            objects.INSTALLATION,
            {"cache": {"delivery": "EmptyDir"}},
            {},
            "delivery EmptyDir, for namespaces without host paths: use HostPath, or remove the annotation",
        ),
        (
            objects.INSTALLATION,
            {},
            {"volumes": [{"name": "tonnage-artifacts-0", "emptyDir": {}}]},
            "named tonnage-artifacts-0, which is reserved",
        ),
        (
            objects.INSTALLATION,
            {},
            {
                "containers": [
                    {"name": "s", "image": "i", "volumeMounts": [{"name": "own", "mountPath": "/var/cache/tonnage"}]}
                ]
            },
            "already mounts a volume at /var/cache/tonnage",
        ),
        (
            objects.INSTALLATION,
            {},
            {"containers": [{"name": f"s{number}", "image": f"i{number}"} for number in range(9)]},
            "more than 8 different images or users",
        ),
    ],
    ids=["no disk", "turned off", "no host paths", "reserved name", "taken path", "many images"],
)
def test_a_pod_that_can_have_no_folder_is_refused_with_a_remedy(
    installation: Any, spec: dict[str, Any], pod: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdmissionDenied) as caught:
        inject_pod(annotated_pod(ASKED, **pod), resolved_modelweights(spec), installation=installation)
    assert message in str(caught.value)


# The record of a node

NOW = datetime(2026, 1, 10, tzinfo=UTC)
KEY = naming.artifacts_key("serving", "serving/llama", "vllm:1", None)
OTHER = naming.artifacts_key("serving", "serving/llama", "vllm:2", None)
THIRD = naming.artifacts_key("visitors", "serving/llama", "vllm:2", None)
REF = "serving/llama"
SETTINGS = ArtifactsSettings(max_bytes="100", max_node_bytes="250", max_age="24h")
INSTALLATION = objects.INSTALLATION.model_copy(update={"artifacts": SETTINGS})


def _time(hours_ago: float) -> str:
    return (NOW - timedelta(hours=hours_ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _entry(key: str = KEY, **fields: Any) -> CacheEntry:
    plain = {"medium": Medium.DISK, "state": EntryState.READY, "models": (REF,), "image": "vllm:1", "bytes": 50}
    return CacheEntry.model_validate({"name": key, "last_used_time": _time(1), **plain, **fields})


def _pod(
    key: str = KEY, *, size: int | None = None, hours_ago: float = 1, phase: str = "Running", started: bool = True
) -> Pod:
    """Returns a pod whose loader has reported the size of its artifacts; with None, has not."""
    sizes = () if size is None else (contract.ArtifactsSize(name=naming.entry_of(key), bytes=size),)
    message = msgspec.json.encode(contract.Report(outcome=contract.Outcome.HIT, artifacts=sizes)).decode()
    loader = LoaderStatus(
        names.LOADER_CONTAINER,
        ready=started,
        terminated=TerminatedState(0, "Completed", message) if size is not None else None,
        waiting_reason="",
        waiting_message="",
        started=started,
    )
    held = HeldEntry(
        container=names.LOADER_CONTAINER, namespace="serving", name="llama", uid=objects.UID, revision="", key=key,
        medium=Medium.DISK, image="vllm:1",
    )  # fmt: skip
    return Pod(
        namespace="serving", name="server", uid=f"pod-{hours_ago}", role=names.ROLE_INJECTED, model_uid="", job_uid="",
        node="n0", phase=phase, reason="", message="", created=_time(hours_ago), unschedulable_message="",
        held_entries=(held,), loaders=(loader,), deleting=False,
    )  # fmt: skip


def _decide(*entries: CacheEntry, pods: tuple[Pod, ...] = (), exists: bool = True, **more: Any) -> NodeDecision:
    owned = frozenset(artifacts_by_object(entries, pods).get(REF, ())) if exists else frozenset()
    references = [
        ModelReferences(REF, deleting=not exists, entries=owned, retention=more.pop("retention", Retention.EVICTABLE))
    ]
    return decide_node(
        NodeSnapshot(
            now=NOW, installation=INSTALLATION, node=parse_node(objects.node("n0")), uid="cache",
            status=NodeCacheStatus(bootID="boot-1", entries=entries), consumers=pods, references=references, **more,
        )
    )  # fmt: skip


def _records(decision: NodeDecision) -> dict[str, CacheEntry]:
    assert decision.status is not None
    return {entry.name: entry for entry in decision.status.entries or ()}


def _evicted(decision: NodeDecision) -> dict[str, str]:
    """Returns the cause of each cleanup Job, by the key of its entry."""
    found = [job["metadata"]["annotations"] for job in decision.apply]
    return {each[names.CACHE_KEY]: each[names.CAUSE] for each in found}


def test_artifacts_are_on_record_once_a_loader_has_started() -> None:
    assert KEY not in _records(_decide(pods=(_pod(started=False),)))
    record = _records(_decide(pods=(_pod(size=7),)))[KEY]
    assert (record.state, record.models, record.image, record.bytes) == (EntryState.READY, (REF,), "vllm:1", 7)
    assert record.last_used_time == _time(1)


def test_artifacts_are_no_entry_in_the_column_of_kubectl() -> None:
    status = _decide(_entry()).status
    assert status is not None
    assert status.summary is not None
    assert status.summary.entries == 0


def test_a_pod_that_has_ended_adds_no_record_again() -> None:
    assert KEY not in _records(_decide(pods=(_pod(size=7, phase="Succeeded"),)))


def test_the_latest_pod_knows_the_size() -> None:
    pods = (_pod(size=30, hours_ago=1), _pod(size=20, hours_ago=2), _pod(hours_ago=0.5))
    record = _records(_decide(_entry(), pods=pods))[KEY]
    assert (record.bytes, record.last_used_time) == (30, _time(0.5))


def test_a_long_use_is_recorded_from_time_to_time_only() -> None:
    assert _records(_decide(_entry(), pods=(_pod(hours_ago=200),)))[KEY].last_used_time == _time(1)
    late = _entry(last_used_time=_time(2))
    assert _records(_decide(late, pods=(_pod(hours_ago=200),)))[KEY].last_used_time == _time(0)
    assert _records(_decide(late, pods=(_pod(hours_ago=200, phase="Failed"),)))[KEY].last_used_time == _time(2)


def test_artifacts_go_when_they_are_too_old_or_too_large_unless_a_pod_has_them() -> None:
    old, large = _entry(last_used_time=_time(25)), _entry(OTHER, bytes=101)
    assert _evicted(_decide(old, large)) == {KEY: "Age", OTHER: "Size"}
    assert _evicted(_decide(old, large, pods=(_pod(KEY), _pod(OTHER, size=MAX_ARTIFACTS_BYTES)))) == {}
    assert _evicted(_decide(old, large, pods=(_pod(KEY, phase="Failed"),))) == {OTHER: "Size"}


def test_the_least_recently_used_ones_go_when_a_node_has_too_many_bytes() -> None:
    entries = [_entry(key, bytes=100, last_used_time=_time(age)) for key, age in ((KEY, 3), (OTHER, 5), (THIRD, 4))]
    assert _evicted(_decide(*entries)) == {OTHER: "Size"}
    assert _evicted(_decide(*entries, pods=(_pod(OTHER),))) == {THIRD: "Size"}


@pytest.mark.parametrize("retention", list(Retention))
def test_artifacts_go_with_their_object_whatever_its_retention(retention: Retention) -> None:
    assert _evicted(_decide(_entry(), retention=retention)) == {}
    assert _evicted(_decide(_entry(), exists=False, retention=retention)) == {KEY: "Unreferenced"}


def test_a_cleanup_job_can_remove_files_of_other_users_and_one_of_weights_can_not() -> None:
    (job,) = _decide(_entry(), exists=False).apply
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (volume,) = job["spec"]["template"]["spec"]["volumes"]
    assert volume["hostPath"]["path"].endswith(f"/{KEY}")
    assert container["args"][-1] == naming.entry_of(KEY)
    assert container["securityContext"]["capabilities"]["add"] == ["DAC_OVERRIDE", "FOWNER"]
    weights = _entry("r-111111111111", image=None)
    (job,) = _decide(weights, exists=False, retention=Retention.WHILE_REFERENCED).apply
    assert job["spec"]["template"]["spec"]["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_held_artifacts_survive_the_annotation() -> None:
    held = _held(inject_pod(annotated_pod(ASKED)))
    assert parse_held_entries(format_held_entries(tuple(held))) == tuple(held)
