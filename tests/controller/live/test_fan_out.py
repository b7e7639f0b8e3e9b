"""A model reaches several nodes, with real loaders, peers, controller, API server and S3 server."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

from operator_support.harness import ControllerThread, admin_client_config, make_installation
from operator_support.process_nodes import ProcessNodes
from support.models import CONFIG, assert_tensors_equal, load_safetensors_dir, make_tensors, to_tensors_file
from support.ports import free_ports
from support.waiting import eventually
from tonnage_operator.domain.peers.credentials import parse_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from operator_support.harness import OperatorHarness
    from support.s3_server import SeaweedS3

SIZE = 8 * 1024


@pytest.fixture
def nodes(harness: OperatorHarness, tmp_path: Path, peers_secret: str) -> Iterator[ProcessNodes]:
    """Three nodes with peers, and a controller that loaders report to."""
    report_port, peer_port = free_ports(2)
    installation = make_installation(
        sharing="Namespace",
        peers={"secret": "tonnage-peers", "port": peer_port},
        reports={"url": f"http://127.0.0.1:{report_port}/v1/reports", "interval": 0.2},
    )
    with (
        ControllerThread(admin_client_config(harness.plane), installation, report_port=report_port),
        ProcessNodes(harness.plane, tmp_path, peer_port) as running,
    ):
        eventually(lambda: parse_credentials(harness.plane.request("GET", peers_secret).get("data") or {}))
        secret = harness.plane.request("GET", peers_secret)["data"]
        for node in harness.add_nodes("a", "b", "c"):
            running.start_peer(node, secret)
        yield running
    for peer in running.peers.values():
        harness.plane.request("DELETE", peer.path, {"gracePeriodSeconds": 0})


def _create(harness: OperatorHarness, s3: SeaweedS3, **placement: Any) -> dict[str, Any]:
    """Creates a model in the bucket, and the object, with the keys in a Secret. Returns the tensors."""
    tensors = make_tensors(count=8, rows=1024)
    bucket = s3.make_bucket()
    s3.put(bucket, {"model/weights.tensors": to_tensors_file(tensors), "model/config.json": CONFIG})
    keys = {name: value for name, value in s3.environment().items() if "KEY" in name}
    data = {name: base64.b64encode(value.encode()).decode() for name, value in keys.items()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}, "data": data}
    harness.plane.request("POST", f"/api/v1/namespaces/{harness.namespace}/secrets", secret)
    source = {"s3": {"bucket": bucket, "prefix": "model/", "endpoint": s3.endpoint, "region": "us-east-1"}}
    harness.create({
        "source": source,
        "credentials": {"secretRef": {"name": "s3"}},
        "placement": placement,
    })  # fmt: skip
    return tensors


@pytest.mark.timeout(240)
def test_one_node_reads_the_bucket_and_feeds_the_others_which_the_object_shows(
    harness: OperatorHarness, nodes: ProcessNodes, s3: SeaweedS3
) -> None:
    tensors = _create(harness, s3, maxConcurrentNodes=1)
    harness.wait_for_condition("Warm", timeout=90)
    (_, first), *others = nodes.finished
    assert (first.peer_bytes, first.verified) == (0, "crc32")
    assert len(others) == 2, "one node feeds two, so both loaded at the same time"
    size = sum(tensor.nbytes for tensor in tensors.values())
    for node, report in others:
        assert report.peer_bytes >= size, node
        assert report.downloaded_bytes - report.peer_bytes < 100_000, node
        assert report.dropped_peers == (), node
    status = harness.status()
    assert status["resolved"]["headersDigest"] == first.headers_digest != ""
    for node, report in nodes.finished:
        folder = nodes.cache(node) / harness.namespace / report.entry / "model"
        assert_tensors_equal(load_safetensors_dir(folder), tensors)
