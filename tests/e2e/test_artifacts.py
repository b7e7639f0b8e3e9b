"""What engines find in a pod besides weights: what they compiled at their last start, and vLLM its plugin."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from e2e_support.pods import IDLE_SCRIPT, PYTHON, RESTRICTED_SECURITY_CONTEXT, Pod, server_pod
from support.waiting import eventually
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.namespace import Namespace

ENGINE_SCRIPT = f"""
import json, os
root = os.environ["TONNAGE_ARTIFACTS_PATH"]
found = sorted(os.path.relpath(os.path.join(at, name), root) for at, _, files in os.walk(root) for name in files)
print("found", json.dumps(found), flush=True)
for variable in ("TRITON_CACHE_DIR", "VLLM_CACHE_ROOT"):
    os.makedirs(os.environ[variable], 0o700, exist_ok=True)
    with open(os.path.join(os.environ[variable], "kernel"), "w") as kernel:
        kernel.write("k" * 100_000)
{IDLE_SCRIPT}
"""
"""An engine that looks for what it has compiled at its last start, and compiles again."""
PLUGIN_SCRIPT = """
import importlib.metadata, pathlib, tonnage
(plugin,) = importlib.metadata.entry_points(group="vllm.general_plugins")
print(plugin.value, pathlib.Path(tonnage.__file__).parents[1])
"""
"""What vLLM looks up at its start; without the packages of the image, which has Tonnage itself."""
COMPILED = ["triton/kernel", "vllm/kernel"]


def start(namespace: Namespace, name: str, *, user: int = 1000) -> Pod:
    annotations = {names.MODEL: "llama", names.ARTIFACTS: "true", names.VLLM_PLUGIN: "true"}
    image = namespace.e2e.images.loader
    body = server_pod(name, namespace.name, image, annotations=annotations, script=ENGINE_SCRIPT)
    body["spec"]["containers"][0]["securityContext"] = {**RESTRICTED_SECURITY_CONTEXT, "runAsUser": user}
    namespace.e2e.api.create(body)
    pod = Pod(namespace.e2e, name, namespace.name)
    pod.wait_ready()
    return pod


def found_by(pod: Pod) -> list[str]:
    """Returns what an engine has found. It is ready before it has looked."""
    line = eventually(lambda: next((each for each in pod.logs().splitlines() if each.startswith("found ")), ""))
    found: list[str] = json.loads(line.removeprefix("found "))
    return found


def folders(e2e: E2ECluster, namespace: Namespace) -> list[Path]:
    return sorted((e2e.media["Disk"] / namespace.name).glob("a-*"))


def records(e2e: E2ECluster, namespace: Namespace) -> list[dict[str, Any]]:
    status = e2e.api.get("NodeCache", e2e.node).get("status") or {}
    return [each for each in status.get("entries") or () if each["name"].startswith(f"{namespace.name}/a-")]


def wait_for_records(e2e: E2ECluster, predicate: Callable[[], bool]) -> None:
    e2e.api.wait_for("NodeCache", e2e.node, "", lambda _: predicate(), description="records of artifacts")


@pytest.mark.prepared
def test_a_second_pod_finds_what_the_first_compiled_until_the_model_is_deleted(
    namespace: Namespace, make_namespace: Callable[..., Namespace], e2e: E2ECluster
) -> None:
    model = namespace.create_model()
    first = start(namespace, "first")
    assert found_by(first) == []
    assert first.exec(PYTHON, "-SBc", PLUGIN_SCRIPT).split() == ["tonnage.vllm_plugin:register", "/opt/tonnage"]
    first.delete()
    second = start(namespace, "second")
    assert found_by(second) == COMPILED
    (folder,) = folders(e2e, namespace)
    # Root without capabilities could neither measure nor remove files in a folder of mode 0700 of another user.
    report = second.last_report()
    assert [(each.name, each.bytes >= 200_000) for each in report.artifacts] == [(folder.name, True)]

    assert found_by(start(namespace, "third", user=1001)) == []
    others = make_namespace()
    others.create_model()
    assert found_by(start(others, "fourth")) == []

    image = second.get()["spec"]["containers"][0]["image"]
    wait_for_records(e2e, lambda: any(each.get("bytes", 0) >= 200_000 for each in records(e2e, namespace)))
    found = records(e2e, namespace)
    assert {each["name"] for each in found} == {f"{namespace.name}/{each.name}" for each in folders(e2e, namespace)}
    assert all(each["image"] == image and each["models"] == [f"{namespace.name}/llama"] for each in found)

    for pod in namespace.list_pods():
        e2e.api.delete("Pod", pod["metadata"]["name"], namespace.name, grace_period=2)
    model.delete()
    wait_for_records(e2e, lambda: not records(e2e, namespace))
    assert [list((each / "files").iterdir()) for each in folders(e2e, namespace)] == [[], []]
    assert len(records(e2e, others)) == 1
