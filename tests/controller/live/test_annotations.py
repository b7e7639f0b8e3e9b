"""Each annotation of a pod on a real API server: what people write is what is admitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from operator_support.pods import create_pod, inits, make_resolved, volumes
from tonnage import contract
from tonnage_operator.api import names

if TYPE_CHECKING:
    from operator_support.fleet import Fleet

pytestmark = pytest.mark.usefixtures("webhook")

PAIR = [{"name": "server", "image": "vllm"}, {"name": "logs", "image": "fluent"}]


@pytest.fixture
def model(fleet: Fleet) -> Fleet:
    make_resolved(fleet)
    return fleet


def admitted(fleet: Fleet, **notes: str) -> dict[str, Any]:
    """Returns a pod of two containers as it is admitted with annotations beside that of the model."""
    written = {f"tonnage.dev/{key.replace('_', '-')}": value for key, value in notes.items()}
    if names.MODELS not in written:
        written.setdefault(names.MODEL, "llama")
    return create_pod(fleet, written, query="?dryRun=All", containers=PAIR)


def mounts(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = container.get("volumeMounts") or ()
    return {each["mountPath"]: each for each in found if each["name"].startswith(names.VOLUME_PREFIX)}


def env(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container.get("env") or ()}


def plan(loader: dict[str, Any]) -> contract.Plan:
    return contract.decode_plan(env(loader)["TONNAGE_PLAN"])


def test_one_model_is_mounted_read_only_into_all_containers_and_told_by_variables_and_annotations(model: Fleet) -> None:
    pod = admitted(model)
    revision = model.status()["resolved"]["revision"]
    for container in pod["spec"]["containers"]:
        (mount,) = mounts(container).values()
        assert (mount["mountPath"], mount["subPath"], mount["readOnly"]) == ("/models/llama", "model", True)
        assert env(container) == {
            "TONNAGE_MODEL_PATH": "/models/llama",
            "TONNAGE_MODEL_PATH_LLAMA": "/models/llama",
            "TONNAGE_REVISION": revision,
        }
    (loader,) = pod["spec"]["initContainers"]
    assert "readOnly" not in mounts(loader)[f"/cache/{revision}"]
    notes = pod["metadata"]["annotations"]
    assert notes[names.REVISION] == f"llama={revision}"
    assert notes[names.INJECTED]


def test_several_models_come_by_alias(model: Fleet) -> None:
    make_resolved(model, {"source": {"s3": {"prefix": "small/"}}, "cache": {"delivery": "EmptyDir"}}, name="small")
    pod = admitted(model, models=f"base={model.namespace}/llama, draft-1=small")
    assert inits(pod) == ["tonnage-loader-base", "tonnage-loader-draft-1"]
    server = pod["spec"]["containers"][0]
    assert set(mounts(server)) == {"/models/base", "/models/draft-1"}
    assert env(server)["TONNAGE_MODEL_PATH"] == "/models/base"
    assert env(server)["TONNAGE_MODEL_PATH_DRAFT_1"] == "/models/draft-1"
    assert "hostPath" in volumes(pod)["tonnage-cache-base"]
    assert "emptyDir" in volumes(pod)["tonnage-cache-draft-1"]
    assert [part.partition("=")[0] for part in pod["metadata"]["annotations"][names.REVISION].split(",")] == [
        "base",
        "draft-1",
    ]


def test_mount_path_and_containers_say_where_it_goes(model: Fleet) -> None:
    server, logs = admitted(model, mount_path="/weights", containers="server")["spec"]["containers"]
    assert set(mounts(server)) == {"/weights/llama"}
    assert env(server)["TONNAGE_MODEL_PATH"] == "/weights/llama"
    assert not mounts(logs)
    assert not env(logs)


def test_ranks_form_and_resources_are_those_of_the_annotations(model: Fleet) -> None:
    pod = admitted(model, ranks="0-3", form="Init", loader_cpu="250m", loader_memory="1Gi")
    (loader,) = pod["spec"]["initContainers"]
    ranks = plan(loader).files.ranks
    assert ranks
    assert ranks.wanted == (0, 1, 2, 3)
    assert "restartPolicy" not in loader
    assert loader["resources"]["requests"] == {"cpu": "250m", "memory": "1Gi"}
    (loader,) = admitted(model, form="sidecar")["spec"]["initContainers"]
    assert loader["restartPolicy"] == "Always"


def test_going_on_after_a_failure_gives_a_file_that_tells(model: Fleet) -> None:
    pod = admitted(model, on_failure="continue")
    (loader,) = pod["spec"]["initContainers"]
    assert loader["args"][loader["args"].index("--on-failure") + 1] == "continue"
    for container in pod["spec"]["containers"]:
        assert env(container)["TONNAGE_STATUS_FILE"] == "/models/.tonnage/llama/status"
        assert "/models/.tonnage/llama" in mounts(container)
    (loader,) = admitted(model, on_failure="fail")["spec"]["initContainers"]
    assert "--on-failure" not in loader["args"]


def test_scheduling_of_the_pod_wins_over_that_of_the_object(fleet: Fleet) -> None:
    """What it does where nodes are warm is tested beside this; here none is."""
    make_resolved(fleet, {"placement": {"prewarm": "None", "scheduling": "Require"}})
    assert "affinity" not in admitted(fleet, scheduling="Ignore")["spec"]
    assert inits(admitted(fleet, scheduling="prefer")) == [names.LOADER_CONTAINER]


def test_no_annotation_that_a_pod_asks_with_is_missing_here(model: Fleet) -> None:
    assert not inits(admitted(model, inject="false"))
    tested = {"model", "models", "mount-path", "containers", "ranks", "form", "scheduling", "on-failure"}
    tested |= {"loader-cpu", "loader-memory", "inject"}
    assert {name.partition("/")[2] for name in names.POD_ANNOTATIONS} == tested


def test_a_name_of_250_characters_fits_wherever_it_goes(fleet: Fleet) -> None:
    name = "m" * 250
    make_resolved(fleet, name=name)
    pod = create_pod(fleet, {names.MODEL: name}, containers=PAIR)
    assert set(mounts(pod["spec"]["containers"][0])) == {f"/models/{name}"}
    assert pod["metadata"]["annotations"][names.REVISION].startswith(f"{name}=r-")


def test_a_pod_that_may_not_be_root_is_valid_beside_a_loader_that_is(model: Fleet) -> None:
    """As many charts have it. Host paths are the loader's alone, so it keeps the user that the administrator chose."""
    context = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = create_pod(model, securityContext=context, serviceAccountName="default")
    (loader,) = pod["spec"]["initContainers"]
    assert (loader["securityContext"]["runAsUser"], loader["securityContext"]["runAsNonRoot"]) == (0, False)
    assert loader["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["spec"]["securityContext"] == context
