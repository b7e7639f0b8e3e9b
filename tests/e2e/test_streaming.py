"""Pods that start before their weights are loaded, on a real node: ``tonnage.dev/wait: Streaming``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from e2e_support.pods import Pod
from e2e_support.torch_pods import engine_spec, skip_unless_same_python
from tonnage.contract import Outcome
from tonnage_operator.api import names

if TYPE_CHECKING:
    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.namespace import Namespace

ENGINE = """
import os, sys
sys.path.insert(0, "/opt/tonnage/lib/python3.11/site-packages")
import tonnage
path = os.environ["TONNAGE_MODEL_PATH"]
print("started with", sorted(os.listdir(path)), open(os.environ["TONNAGE_STATUS_FILE"]).read().strip(), flush=True)
with tonnage.open(path, wait=True, timeout=300) as weights:
    print("tensors", len(weights), sum(tensor.nbytes for _, tensor in weights.stream()), flush=True)
"""


def test_a_streaming_pod_starts_at_once_and_other_pods_see_nothing_of_it(namespace: Namespace, e2e: E2ECluster) -> None:
    skip_unless_same_python()
    model = namespace.create_model("large", files=e2e.model_files.large)
    annotations = {names.MODEL: "large", names.WAIT: "Streaming"}
    metadata = {"name": "engine", "namespace": namespace.name, "annotations": annotations}
    spec = engine_spec(e2e.images.loader, ENGINE)
    with model.hold_rest():
        e2e.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        pod = Pod(e2e, "engine", namespace.name)
        body = pod.wait_for(lambda body: "running" in pod.container_status("server", body).get("state", {}))

        loader = pod.container_status(names.LOADER_CONTAINER, body)
        assert loader["started"]
        assert not loader["ready"]
        assert model.visible_files() == []
        e2e.api.wait_for(
            "NodeCache", e2e.node, "", lambda _: (found := model.nodecache_entry()) and found["state"] == "Loading"
        )
        pod.wait_for_log("started with")
        plain = namespace.create_pod(model="large")

    pod.wait_for(lambda body: body["status"]["phase"] == "Succeeded", timeout=240)
    started, read, *_ = pod.logs().splitlines()
    assert "'tonnage-stream.json'" in started
    assert started.endswith("loading")
    tensors, size = map(int, read.split()[1:])
    assert tensors > 0
    assert size > 100_000_000

    plain.wait_ready(timeout=150)
    assert plain.last_report().outcome is Outcome.HIT
    plain.wait_for_log("complete: model")
    assert "stream" not in str(plain.get()["spec"])
