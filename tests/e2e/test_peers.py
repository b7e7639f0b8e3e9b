"""The chart's peers on a real node: the image starts nginx as an ordinary user, and loads work with peers on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from operator_support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.namespace import Namespace

SYSTEM = "tonnage-system"


@pytest.fixture
def peers(e2e: E2ECluster) -> Iterator[None]:
    """The release with peers."""
    e2e.release.install({"peers": {"enabled": True, "resources": {"requests": {"cpu": "10m"}}}})
    yield
    e2e.release.install()


@pytest.mark.usefixtures("peers")
def test_a_peer_is_ready_without_root_reads_entries_and_writes_none(namespace: Namespace, e2e: E2ECluster) -> None:
    def has_ready_peer() -> bool:
        found = json.loads(e2e.kubectl("get", "daemonset", "tonnage-peers", "-n", SYSTEM, "-o", "json"))["status"]
        return bool(found.get("numberReady", 0) == found["desiredNumberScheduled"] == 1)

    eventually(has_ready_peer, timeout=90)
    (pod,) = e2e.release.pods("peers")

    def run(command: str) -> str:
        name = pod["metadata"]["name"]
        return e2e.kubectl("exec", "-n", SYSTEM, name, "--", "sh", "-c", f"{command} 2>&1 || true").strip()

    assert run("id -u") == "65532"
    model = namespace.create_model("warm", spec={"placement": {"prewarm": "AllMatching"}}, wait=False)
    model.wait_for_condition("Warm")
    resolved = model.status["resolved"]
    assert resolved["headersDigest"], "the loader asked for peers, found none, and reported the digest"
    folder = f"/media/memory/{namespace.name}/{model.revision}"
    assert run(f"ls {folder}/model").split()
    assert run(f"cat {folder}/.tonnage/manifest.json").startswith("{")
    assert "Read-only file system" in run(f"touch {folder}/x")
    assert run("cat /var/run/secrets/kubernetes.io/serviceaccount/token").endswith("No such file or directory")
