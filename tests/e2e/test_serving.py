"""The main use: the first pod on a node loads, later ones attach, and all serve."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from operator_support.objects import get_condition
from tonnage.contract import Outcome
from tonnage_operator.api import names

if TYPE_CHECKING:
    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.namespace import Namespace


def test_the_first_pod_loads_and_later_ones_attach(namespace: Namespace, e2e: E2ECluster) -> None:
    model = namespace.create_model("large", files=e2e.model_files.large)
    first = namespace.create_pod(model="large")
    body = first.wait_ready()
    report = first.last_report()
    assert report.outcome is Outcome.LOADED
    assert report.verified == "crc32"
    assert report.node == e2e.node
    assert report.downloaded_bytes > 100_000_000
    first.wait_for_log(f"serving {model.revision}")
    assert "complete: model" in first.logs()
    assert body["metadata"]["annotations"][names.REVISION] == f"large={model.revision}"

    for _ in range(2):
        later = namespace.create_pod(model="large")
        later.wait_ready()
        assert later.last_report().outcome is Outcome.HIT
        assert later.last_report().downloaded_bytes == 0

    entry = e2e.api.wait_for(
        "NodeCache", e2e.node, "", lambda _: (found := model.nodecache_entry()) and found["state"] == "Ready"
    )
    assert entry["status"]["bootID"]
    model.wait_for_status(lambda status: status["consumers"]["pods"] == 3, description="three consumers")
    on_node = model.nodecache_entry()
    assert on_node
    assert on_node["models"] == [f"{namespace.name}/large"]
    assert on_node["bytes"] == pytest.approx(report.bytes, rel=0.01)


@pytest.mark.prepared
def test_five_pods_at_once_share_one_download(namespace: Namespace, e2e: E2ECluster) -> None:
    model = namespace.create_model()
    with ThreadPoolExecutor(5) as pool:
        pods = list(pool.map(lambda _: namespace.create_pod(), range(5)))
    for pod in pods:
        pod.wait_ready(timeout=150)
    reports = [pod.last_report() for pod in pods]
    assert Counter(report.outcome for report in reports) == {Outcome.LOADED: 1, Outcome.HIT: 4}
    (size,) = {path.stat().st_size for name, path in e2e.model_files.small.items() if name == "model.tensors"}
    # Besides the tensors, once each, there are requests for the index and for the state of objects.
    assert size * 0.9 < e2e.storage.bytes_served(e2e.bucket, f"{model.prefix}model.tensors") < size * 1.1


def test_a_prewarmed_node_is_warm_before_the_first_pod(namespace: Namespace, e2e: E2ECluster) -> None:
    spec = {"placement": {"prewarm": "AllMatching"}}
    model = namespace.create_model("large", files=e2e.model_files.large, spec=spec, wait=False)
    with model.hold_rest():
        model.wait_for_status(
            lambda status: 0 < (status.get("progress") or {}).get("percent", -1) < 100, description="some progress"
        )
        assert not model.visible_files(), "a partial entry is visible"
    body = model.wait_for_condition("Warm")
    assert body["status"]["nodes"]["summary"] == "1/1"
    assert "LoadCompleted" in model.event_reasons()
    pod = namespace.create_pod(model="large")
    pod.wait_ready()
    assert pod.last_report().outcome is Outcome.HIT
    media = {each["name"]: each for each in e2e.api.get("NodeCache", e2e.node)["status"]["media"]}
    assert 0 < media["Memory"]["freeBytes"] < media["Memory"]["capacityBytes"]


@pytest.mark.prepared
def test_two_models_are_mounted_by_alias(namespace: Namespace, e2e: E2ECluster) -> None:
    """One has a prefix that Kubernetes would change if it were a reference to a variable."""
    prefix = f"{namespace.name}/$$/$(KUBERNETES_SERVICE_HOST)/"
    e2e.upload(prefix, e2e.model_files.small)
    base, draft = namespace.create_model(), namespace.create_model("draft", prefix=prefix)
    pod = namespace.create_pod(
        model="", annotations={names.MODELS: "big=llama,little-1=draft", names.MOUNT_PATH: "/weights"}
    )
    pod.wait_ready()
    environment = dict(line.split("=", 1) for line in pod.exec("env").splitlines() if line.startswith("TONNAGE_"))
    assert environment["TONNAGE_MODEL_PATH_BIG"] == "/weights/big"
    assert environment["TONNAGE_MODEL_PATH_LITTLE_1"] == "/weights/little-1"
    assert environment["TONNAGE_REVISION_BIG"] == base.revision
    assert environment["TONNAGE_REVISION_LITTLE_1"] == draft.revision
    for alias in ("big", "little-1"):
        assert "config.json" in pod.exec("ls", f"/weights/{alias}").split()


def test_presigned_urls_from_a_secret_are_loaded(namespace: Namespace, e2e: E2ECluster) -> None:
    prefix = f"{namespace.name}/presigned/"
    e2e.upload(prefix, e2e.model_files.small)
    urls = [
        e2e.s3_client.generate_presigned_url("get_object", Params={"Bucket": e2e.bucket, "Key": prefix + name})
        for name in e2e.model_files.small
    ]
    namespace.apply_secret("urls", {"urls": "\n".join(urls)})
    # create_model merges its spec and can't remove the s3 source, so the object is created here.
    body = {
        "apiVersion": names.API_VERSION,
        "kind": names.MODEL_WEIGHTS_KIND,
        "metadata": {"name": "presigned", "namespace": namespace.name},
        "spec": {"source": {"http": {"urlsFrom": {"name": "urls", "key": "urls"}}}},
    }
    e2e.api.create(body)
    e2e.api.wait_for(
        "ModelWeights",
        "presigned",
        namespace.name,
        lambda found: get_condition(found, "Ready")[0] == "True",
    )
    pod = namespace.create_pod(model="presigned")
    pod.wait_ready()
    assert pod.last_report().outcome is Outcome.LOADED
    described = e2e.kubectl("get", "pod", pod.name, "-n", namespace.name, "-o", "yaml")
    assert "X-Amz-Signature" not in described + pod.logs(names.LOADER_CONTAINER)
