"""Each annotation of a pod on a real API server has its effect in the admitted pod."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from operator_support.injection import own_containers, plain_env
from operator_support.pods import create_pod, create_resolved_model, init_container_names, volumes_by_name
from tonnage import contract
from tonnage_operator.api import names

if TYPE_CHECKING:
    from operator_support.harness import OperatorHarness

pytestmark = pytest.mark.usefixtures("webhook")

PAIR = [{"name": "server", "image": "vllm"}, {"name": "logs", "image": "fluent"}]


@pytest.fixture
def model(harness: OperatorHarness) -> OperatorHarness:
    create_resolved_model(harness)
    return harness


def create_admitted_pod(harness: OperatorHarness, **annotations: str) -> dict[str, Any]:
    """Returns a pod of two containers as admitted, with annotations in addition to that of the model."""
    written = {f"tonnage.dev/{key.replace('_', '-')}": value for key, value in annotations.items()}
    if names.MODELS not in written:
        written.setdefault(names.MODEL, "llama")
    return create_pod(harness, written, query="?dryRun=All", containers=PAIR)


def mounts(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = container.get("volumeMounts") or ()
    return {each["mountPath"]: each for each in found if each["name"].startswith(names.VOLUME_PREFIX)}


def env(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container.get("env") or ()}


def plan(loader: dict[str, Any]) -> contract.Plan:
    return contract.decode_plan(plain_env(loader)["TONNAGE_PLAN"])


def test_one_model_is_mounted_read_only_into_all_containers_with_variables_and_annotations(
    model: OperatorHarness,
) -> None:
    pod = create_admitted_pod(model)
    revision = model.status()["resolved"]["revision"]
    for container in own_containers(pod):
        (mount,) = mounts(container).values()
        assert (mount["mountPath"], mount["subPath"], mount["readOnly"]) == ("/models/llama", "model", True)
        assert env(container) == {
            "TONNAGE_MODEL_PATH": "/models/llama",
            "TONNAGE_MODEL_PATH_LLAMA": "/models/llama",
            "TONNAGE_REVISION": revision,
            "TONNAGE_REVISION_LLAMA": revision,
        }
    loader = pod["spec"]["initContainers"][0]
    assert "readOnly" not in mounts(loader)[f"/cache/{revision}"]
    annotations = pod["metadata"]["annotations"]
    assert annotations[names.REVISION] == f"llama={revision}"
    assert annotations[names.INJECTED]


def test_several_models_are_mounted_by_alias(model: OperatorHarness) -> None:
    create_resolved_model(
        model, {"source": {"s3": {"prefix": "small/"}}, "cache": {"delivery": "EmptyDir"}}, name="small"
    )
    pod = create_admitted_pod(model, models=f"base={model.namespace}/llama, draft-1=small")
    assert init_container_names(pod) == ["tonnage-loader-base", "tonnage-loader-draft-1"]
    server = pod["spec"]["containers"][0]
    assert set(mounts(server)) == {"/models/base", "/models/draft-1"}
    assert env(server)["TONNAGE_MODEL_PATH"] == "/models/base"
    assert env(server)["TONNAGE_MODEL_PATH_DRAFT_1"] == "/models/draft-1"
    assert "hostPath" in volumes_by_name(pod)["tonnage-cache-base"]
    assert "emptyDir" in volumes_by_name(pod)["tonnage-cache-draft-1"]
    assert [part.partition("=")[0] for part in pod["metadata"]["annotations"][names.REVISION].split(",")] == [
        "base",
        "draft-1",
    ]


def test_mount_path_and_containers_select_where_the_model_is_mounted(model: OperatorHarness) -> None:
    server, logs = own_containers(create_admitted_pod(model, mount_path="/weights", containers="server"))
    assert set(mounts(server)) == {"/weights/llama"}
    assert env(server)["TONNAGE_MODEL_PATH"] == "/weights/llama"
    assert not mounts(logs)
    assert not env(logs)


def test_ranks_form_and_resources_are_taken_from_the_annotations(model: OperatorHarness) -> None:
    create_resolved_model(model, {"files": {"ranks": {"pattern": "model-%d.tensors"}}}, name="sharded")
    annotations = {"form": "Init", "loader_cpu": "250m", "loader_memory": "1Gi"}
    pod = create_admitted_pod(model, model="sharded", ranks="0-1", **annotations)
    loader = pod["spec"]["initContainers"][0]
    ranks = plan(loader).files.ranks
    assert ranks
    assert ranks.wanted == (0, 1)
    assert "restartPolicy" not in loader
    assert loader["resources"]["requests"] == {"cpu": "250m", "memory": "1Gi"}
    holder = create_admitted_pod(model, form="sidecar")["spec"]["containers"][-1]
    assert holder["name"] == names.HOLDER_CONTAINER


def test_artifacts_are_writable_and_the_plugin_is_not(model: OperatorHarness) -> None:
    for container in own_containers(create_admitted_pod(model, artifacts="true", vllm_plugin="true")):
        artifacts, plugin = mounts(container)["/var/cache/tonnage"], mounts(container)["/opt/tonnage"]
        assert (artifacts["subPath"], artifacts.get("readOnly")) == ("files", None)
        assert plugin["readOnly"] is True
        assert env(container)["TRITON_CACHE_DIR"].startswith("/var/cache/tonnage/")
        assert env(container)["PYTHONPATH"] == "/opt/tonnage"


def test_a_pod_that_continues_after_a_failed_load_has_a_status_file_mounted(model: OperatorHarness) -> None:
    pod = create_admitted_pod(model, on_failure="continue")
    loader = pod["spec"]["initContainers"][0]
    assert loader["args"][loader["args"].index("--on-failure") + 1] == "continue"
    for container in own_containers(pod):
        assert env(container)["TONNAGE_STATUS_FILE"] == "/models/.tonnage/llama/status"
        assert "/models/.tonnage/llama" in mounts(container)
    loader = create_admitted_pod(model, on_failure="fail")["spec"]["initContainers"][0]
    assert "--on-failure" not in loader["args"]


def test_the_pods_scheduling_annotation_overrides_the_object(harness: OperatorHarness) -> None:
    """No node is warm here; test_webhook has the tests with warm nodes."""
    create_resolved_model(harness, {"placement": {"prewarm": "None", "scheduling": "Require"}})
    assert "affinity" not in create_admitted_pod(harness, scheduling="Ignore")["spec"]
    assert init_container_names(create_admitted_pod(harness, scheduling="prefer")) == [names.LOADER_CONTAINER]


def test_a_pod_that_streams_has_a_loader_beside_its_containers(model: OperatorHarness) -> None:
    pod = create_admitted_pod(model, wait="Streaming")
    (loader,) = pod["spec"]["initContainers"]
    assert (loader["name"], loader["restartPolicy"]) == (names.LOADER_CONTAINER, "Always")
    assert all(mounts(each)["/models/llama"]["subPath"] == "stream" for each in own_containers(pod))


def test_every_annotation_of_a_pod_is_tested_here(model: OperatorHarness) -> None:
    assert not init_container_names(create_admitted_pod(model, inject="false"))
    tested = {"model", "models", "mount-path", "containers", "ranks", "form", "scheduling", "on-failure"}
    tested |= {"loader-cpu", "loader-memory", "artifacts", "vllm-plugin", "wait", "inject"}
    tested |= {"same-revision"}  # in test_groups.py
    assert {name.partition("/")[2] for name in names.POD_ANNOTATIONS} == tested


def test_a_name_of_250_characters_is_admitted(harness: OperatorHarness) -> None:
    name = "m" * 250
    create_resolved_model(harness, name=name)
    pod = create_pod(harness, {names.MODEL: name}, containers=PAIR)
    assert set(mounts(pod["spec"]["containers"][0])) == {f"/models/{name}"}
    assert pod["metadata"]["annotations"][names.REVISION].startswith(f"{name}=r-")


def test_a_pod_with_run_as_non_root_is_valid_with_a_loader_that_runs_as_root(model: OperatorHarness) -> None:
    """Many charts set runAsNonRoot. Only the loader writes to host paths, so it keeps the administrator's user."""
    context = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = create_pod(model, securityContext=context, serviceAccountName="default")
    loader = pod["spec"]["initContainers"][0]
    assert (loader["securityContext"]["runAsUser"], loader["securityContext"]["runAsNonRoot"]) == (0, False)
    assert loader["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["spec"]["securityContext"] == context
