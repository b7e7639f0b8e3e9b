"""An entry is evicted only when no pod uses it, as known from locks on the node and from the controller."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from e2e_support import processes
from e2e_support.e2e_cluster import MEDIA
from e2e_support.pods import Pod
from tonnage.contract import Outcome
from tonnage_operator.api import names

if TYPE_CHECKING:
    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.namespace import Model, Namespace

IN_USE = 30
"""Exit code of `tonnage rm` for an entry in use."""
ENDS_WITHIN = 10.0
"""Seconds after which a deleted pod's processes are gone; those that ignore SIGTERM would be killed after 30."""


def evict(namespace: Namespace, model: Model, name: str) -> tuple[int, str]:
    """Runs the command of a cleanup Job in a pod, and returns its exit code and log."""
    entry = model.revision
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace.name},
        "spec": {
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "rm",
                    "image": namespace.e2e.images.loader,
                    "command": ["tonnage", "rm", "--cache", "/cache", entry],
                    "securityContext": {"runAsUser": 0, "runAsNonRoot": False},
                    "volumeMounts": [{"name": "entry", "mountPath": f"/cache/{entry}"}],
                }
            ],
            "volumes": [{"name": "entry", "hostPath": {"path": f"{MEDIA['Memory']}/{model.namespace}/{entry}"}}],
        },
    }
    namespace.e2e.api.create(body)
    pod = Pod(namespace.e2e, name, namespace.name)
    pod.wait_for(lambda body: body["status"]["phase"] in {"Succeeded", "Failed"}, description="terminated")
    code: int = pod.container_status("rm")["state"]["terminated"]["exitCode"]
    return code, pod.logs("rm")


@pytest.mark.prepared
def test_an_eviction_keeps_the_entry_of_a_running_pod(namespace: Namespace) -> None:
    model = namespace.create_model()
    pod = namespace.create_pod()
    pod.wait_ready()
    before = model.visible_files()
    code, output = evict(namespace, model, "early")
    assert code == IN_USE, output
    assert "CacheInUse" in output
    assert model.visible_files() == before

    (holder,) = pod.pids(names.HOLDER_CONTAINER)
    assert processes.memory_bytes(holder, "Pss") < 12 << 20, "the holder uses too much memory"
    server = pod.pids("server")[0]
    pod.e2e.api.delete("Pod", pod.name, pod.namespace)
    took = max(processes.wait_for_exit(pid, timeout=10) for pid in (server, holder))
    print(f"a deleted pod's processes were gone after {took:.2f} s")
    assert took <= ENDS_WITHIN
    pod.e2e.api.wait_deleted("Pod", pod.name, pod.namespace)

    code, output = evict(namespace, model, "late")
    assert code == 0, output
    assert not model.visible_files()
    assert model.entry_path().is_dir(), "pods may have the folder mounted"


@pytest.mark.prepared
def test_a_deleted_object_keeps_the_entry_for_running_pods(namespace: Namespace, e2e: E2ECluster) -> None:
    model = namespace.create_model()
    pod = namespace.create_pod()
    pod.wait_ready()
    entry, shown, revision = model.entry_path(), model.visible_files(), model.revision
    model.delete()
    model.wait_deleted()
    assert sorted(path.name for path in entry.glob("model/*")) == shown
    assert pod.exec("ls", "/models/llama").split() == shown
    pod.delete()
    e2e.api.wait_for(
        "NodeCache",
        e2e.node,
        "",
        lambda body: all(revision not in each["name"] for each in (body.get("status") or {}).get("entries") or ()),
        description=f"{revision} to be off the record",
    )
    assert not list(entry.glob("model/*"))


@pytest.mark.prepared
def test_the_init_container_form_exits_before_the_server_starts(namespace: Namespace) -> None:
    model = namespace.create_model()
    pod = namespace.create_pod(annotations={names.FORM: "Init"})
    body = pod.wait_ready()
    loader = pod.container_status(names.LOADER_CONTAINER, body)
    assert loader["state"]["terminated"]["exitCode"] == 0
    assert "restartPolicy" not in body["spec"]["initContainers"][0]
    assert pod.last_report().outcome is Outcome.LOADED
    pod.wait_for_log(f"serving {model.revision}")
    # No process holds a lock, but the controller knows the pod.
    entry, shown = model.entry_path(), model.visible_files()
    model.delete()
    model.wait_deleted()
    assert sorted(path.name for path in entry.glob("model/*")) == shown
    server = pod.pids("server")[0]
    pod.e2e.api.delete("Pod", pod.name, pod.namespace)
    assert processes.wait_for_exit(server, timeout=10) <= ENDS_WITHIN
