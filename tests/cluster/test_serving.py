"""What Tonnage is for: the first pod on a node loads, later ones attach, and all of them serve."""

from __future__ import annotations

import statistics
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from cluster_support import processes
from cluster_support.pods import IDLE, PYTHON, TIGHT
from tonnage.contract import Outcome
from tonnage_operator.api import names

if TYPE_CHECKING:
    from cluster_support.site import Site
    from cluster_support.workspace import Workspace

INIT_SECONDS = 5.0
LOADER_SECONDS = 2.0
"""Far above what a pod takes that finds its weights on the node (0.15 s and a second): figures come from benchmarks."""
NOISE_SECONDS = 4.0
"""How far two init phases of the same kind may be apart on a busy machine."""


def bare_init_phase(space: Workspace, number: int) -> float:
    """Returns the seconds that a sidecar takes, which has nothing to do and is ready at once: kubelet's own share."""
    probe = {"exec": {"command": ["test", "-d", "/"]}, "periodSeconds": 1, "failureThreshold": 60}
    sidecar = {
        "name": "idle",
        "image": space.site.images.loader,
        "command": [PYTHON, "-IBS", "-c", IDLE],
        "restartPolicy": "Always",
        "startupProbe": probe,
        "securityContext": TIGHT,
    }
    pod = space.pod(f"bare-{number}", model="", initContainers=[sidecar])
    pod.until_ready()
    return processes.started_at(pod.pids("server")[0]) - processes.started_at(pod.pids("idle")[0])


def test_the_first_pod_loads_and_later_ones_attach_at_once(space: Workspace, site: Site) -> None:
    model = space.model("large", files=site.sources.large)
    first = space.pod(model="large")
    body = first.until_ready()
    report = first.report()
    assert report.outcome is Outcome.LOADED
    assert report.verified == "crc32"
    assert report.node == site.node
    assert report.downloaded_bytes > 100_000_000
    assert "whole: model" in first.logs()
    assert f"serving {model.revision}" in first.logs()
    assert body["metadata"]["annotations"][names.REVISION] == f"large={model.revision}"

    startups = []
    for _ in range(3):
        later = space.pod(model="large")
        later.until_ready()
        assert later.report().outcome is Outcome.HIT
        assert later.report().downloaded_bytes == 0
        startups.append(later.startup())
    floor = [bare_init_phase(space, number) for number in range(2)]
    for each in startups:
        print(f"attached: loader {1000 * each.loader:.0f} ms, init phase {1000 * each.init:.0f} ms")
    print(f"an init phase that does nothing: {', '.join(f'{1000 * each:.0f} ms' for each in floor)}")
    assert min(each.loader for each in startups) <= LOADER_SECONDS
    # Kubelet looks at containers and probes once a second, whatever they do.
    assert statistics.median(each.init for each in startups) <= max(
        INIT_SECONDS, statistics.mean(floor) + NOISE_SECONDS
    )

    entry = site.api.until(
        "NodeCache", site.node, "", lambda _: (found := model.on_node()) and found["state"] == "Ready"
    )
    assert entry["status"]["bootID"]
    model.until_status(lambda status: status["consumers"]["pods"] == 4, what="four consumers")
    on_node = model.on_node()
    assert on_node
    assert on_node["models"] == [f"{space.namespace}/large"]
    assert on_node["bytes"] == pytest.approx(report.bytes, rel=0.01)


def test_ten_pods_at_once_share_one_download(space: Workspace, site: Site) -> None:
    model = space.model()
    with ThreadPoolExecutor(10) as pool:
        pods = list(pool.map(lambda _: space.pod(), range(10)))
    for pod in pods:
        pod.until_ready(within=150)
    reports = [pod.report() for pod in pods]
    assert Counter(report.outcome for report in reports) == {Outcome.LOADED: 1, Outcome.HIT: 9}
    (size,) = {path.stat().st_size for name, path in site.sources.small.items() if name == "model.tensors"}
    # The index is read before the tensors, and each object is asked for its state; no byte of a tensor comes twice.
    assert size * 0.9 < site.storage.bytes_served(site.bucket, f"{model.prefix}model.tensors") < size * 1.1


def test_a_prewarmed_node_is_warm_before_a_pod_asks(space: Workspace, site: Site) -> None:
    spec = {"placement": {"prewarm": "AllMatching"}, "loader": {"bandwidthLimit": "40Mi"}}
    model = space.model("large", files=site.sources.large, spec=spec, wait=False)
    model.until_status(
        lambda status: 0 < (status.get("progress") or {}).get("percent", -1) < 100, what="progress on the way"
    )
    assert not model.visible(), "a half-written model can be seen"
    body = model.until("Warm")
    assert body["status"]["nodes"]["summary"] == "1/1"
    assert "LoadCompleted" in model.events()
    pod = space.pod(model="large")
    pod.until_ready()
    assert pod.report().outcome is Outcome.HIT
    media = {each["name"]: each for each in site.api.get("NodeCache", site.node)["status"]["media"]}
    assert 0 < media["Memory"]["freeBytes"] < media["Memory"]["capacityBytes"]


def test_two_models_come_by_their_aliases(space: Workspace) -> None:
    base, draft = space.model(), space.model("draft")
    pod = space.pod(model="", notes={names.MODELS: "big=llama,little-1=draft", names.MOUNT_PATH: "/weights"})
    pod.until_ready()
    environment = dict(line.split("=", 1) for line in pod.run("env").splitlines() if line.startswith("TONNAGE_"))
    assert environment["TONNAGE_MODEL_PATH_BIG"] == "/weights/big"
    assert environment["TONNAGE_MODEL_PATH_LITTLE_1"] == "/weights/little-1"
    assert environment["TONNAGE_REVISION_BIG"] == base.revision
    assert environment["TONNAGE_REVISION_LITTLE_1"] == draft.revision
    for alias in ("big", "little-1"):
        assert "config.json" in pod.run("ls", f"/weights/{alias}").split()


def test_presigned_urls_from_a_secret_are_loaded(space: Workspace, site: Site) -> None:
    prefix = f"{space.namespace}/presigned/"
    site.put(prefix, site.sources.small)
    urls = [
        site.s3.generate_presigned_url("get_object", Params={"Bucket": site.bucket, "Key": prefix + name})
        for name in site.sources.small
    ]
    space.secret("urls", {"urls": "\n".join(urls)})
    # A merge can't take the s3 source away, so the whole object is written here.
    body = {
        "apiVersion": names.API_VERSION,
        "kind": names.MODEL_WEIGHTS_KIND,
        "metadata": {"name": "presigned", "namespace": space.namespace},
        "spec": {"source": {"http": {"urlsFrom": {"name": "urls", "key": "urls"}}}},
    }
    site.api.create(body)
    site.api.until(
        "ModelWeights",
        "presigned",
        space.namespace,
        lambda found: any(each["type"] == "Ready" and each["status"] == "True" for each in _conditions(found)),
    )
    pod = space.pod(model="presigned")
    pod.until_ready()
    assert pod.report().outcome is Outcome.LOADED
    described = site.kubectl("get", "pod", pod.name, "-n", space.namespace, "-o", "yaml")
    assert "X-Amz-Signature" not in described + pod.logs(names.LOADER_CONTAINER)


def _conditions(found: dict[str, object]) -> list[dict[str, str]]:
    status = found.get("status")
    return list(status.get("conditions") or ()) if isinstance(status, dict) else []
