"""An entry that a pod uses stays, and goes when nobody uses it: seen by locks on the node, and by the controller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster_support import processes
from cluster_support.pods import Pod
from cluster_support.site import MEDIA
from tonnage.contract import Outcome
from tonnage_operator.api import names

if TYPE_CHECKING:
    from cluster_support.site import Site
    from cluster_support.workspace import Model, Workspace

IN_USE = 30
"""Exit code of `tonnage rm` for an entry that somebody uses."""
ENDS_WITHIN = 2.0
"""Seconds after which a deleted pod's processes are gone."""


def evict(space: Workspace, model: Model, name: str) -> tuple[int, str]:
    """Runs in a pod what a cleanup Job runs, and returns its exit code and what it said."""
    entry = model.revision
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": space.namespace},
        "spec": {
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "rm",
                    "image": space.site.images.loader,
                    "command": ["tonnage", "rm", "--cache", "/cache", entry],
                    "securityContext": {"runAsUser": 0, "runAsNonRoot": False},
                    "volumeMounts": [{"name": "entry", "mountPath": f"/cache/{entry}"}],
                }
            ],
            "volumes": [{"name": "entry", "hostPath": {"path": f"{MEDIA['Memory']}/{entry}"}}],
        },
    }
    space.site.api.create(body)
    pod = Pod(space.site, name, space.namespace)
    pod.until(lambda body: body["status"]["phase"] in {"Succeeded", "Failed"}, what="its end")
    code: int = pod.container("rm")["state"]["terminated"]["exitCode"]
    return code, pod.logs("rm")


def test_an_eviction_sees_that_a_pod_lives_and_leaves_its_weights_alone(space: Workspace) -> None:
    model = space.model()
    pod = space.pod()
    pod.until_ready()
    before = model.visible()
    code, said = evict(space, model, "early")
    assert code == IN_USE, said
    assert "CacheInUse" in said
    assert model.visible() == before

    (holder,) = pod.pids(names.LOADER_CONTAINER)
    assert processes.memory_of(holder, "Pss") < 12 << 20, "what stays beside a pod is to be small"
    server = pod.pids("server")[0]
    pod.site.api.delete("Pod", pod.name, pod.namespace)
    took = max(processes.await_end(pid, within=10) for pid in (server, holder))
    print(f"a deleted pod's processes were gone after {took:.2f} s")
    assert took <= ENDS_WITHIN
    pod.site.api.gone("Pod", pod.name, pod.namespace)

    code, said = evict(space, model, "late")
    assert code == 0, said
    assert not model.visible()
    assert model.entry().is_dir(), "pods may have the folder mounted"


def test_a_deleted_object_leaves_the_bytes_to_pods_that_run(space: Workspace, site: Site) -> None:
    model = space.model()
    pod = space.pod()
    pod.until_ready()
    entry, shown = model.entry(), model.visible()
    model.delete()
    model.gone()
    assert sorted(path.name for path in entry.glob("model/*")) == shown
    assert pod.run("ls", "/models/llama").split() == shown
    pod.delete()
    name = entry.name
    site.api.until(
        "NodeCache",
        site.node,
        "",
        lambda body: name not in {each["name"] for each in (body.get("status") or {}).get("entries") or ()},
        what=f"{name} to be off the record",
    )
    assert not list(entry.glob("model/*"))


def test_the_plain_form_loads_and_ends_before_the_server_starts(space: Workspace) -> None:
    model = space.model()
    pod = space.pod(notes={names.FORM: "Init"})
    body = pod.until_ready()
    loader = pod.container(names.LOADER_CONTAINER, body)
    assert loader["state"]["terminated"]["exitCode"] == 0
    assert "restartPolicy" not in body["spec"]["initContainers"][0]
    assert pod.report().outcome is Outcome.LOADED
    assert f"serving {model.revision}" in pod.logs()
    # Nobody holds a lock; the controller knows the pod all the same.
    entry, shown = model.entry(), model.visible()
    model.delete()
    model.gone()
    assert sorted(path.name for path in entry.glob("model/*")) == shown
    server = pod.pids("server")[0]
    pod.site.api.delete("Pod", pod.name, pod.namespace)
    assert processes.await_end(server, within=10) <= ENDS_WITHIN
