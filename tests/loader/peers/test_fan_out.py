"""Loads take bytes from other nodes: real loaders, the real nginx, a real S3 server."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest

from support.faulty_server import FaultyServer
from support.models import CONFIG, assert_tensors_equal, load_safetensors_dir, make_tensors, to_tensors_file
from support.peer_fleet import finish, source_of
from tonnage.contract import Limits, Verify
from tonnage.contract.peers import AWAIT_HEADERS, READ_HEADERS

if TYPE_CHECKING:
    import torch

    from support.faulty_server import Request
    from support.peer_fleet import Fleet
    from support.s3_server import SeaweedS3


@pytest.mark.parametrize("kind", ["tensors", "safetensors"])
@pytest.mark.parametrize("medium", ["memory", "disk"])
def test_a_second_node_takes_a_model_from_the_first(
    fleet: Fleet,
    s3: SeaweedS3,
    bucket: str,
    safetensors_bucket: str,
    tensors: dict[str, torch.Tensor],
    kind: str,
    medium: str,
) -> None:
    fleet.medium = medium
    fleet.namespace = "team" if medium == "disk" else ""
    first, second = fleet.add("node-a"), fleet.add("node-b")
    plan = fleet.plan(source_of(bucket if kind == "tensors" else safetensors_bucket, s3.endpoint))
    one = fleet.load(first, plan, s3.environment())
    assert one["outcome"] == "loaded", one
    assert one["peer_bytes"] == 0
    two = fleet.load(second, plan, s3.environment())
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert two["peer_bytes"] >= size, two
    assert two["downloaded_bytes"] - two["peer_bytes"] < 100_000, two
    assert two["dropped_peers"] == [], two
    assert any("came from peers" in note for note in two["notes"]), two
    assert two["verified"] == one["verified"] == "crc32"
    assert two["headers_digest"] == one["headers_digest"] != ""
    folder = fleet.model_folder(second, two)
    assert_tensors_equal(load_safetensors_dir(folder), tensors)
    assert (folder / "config.json").read_bytes() == CONFIG


@pytest.mark.parametrize("place", ["bucket", "safetensors_bucket", "unhashed_bucket"])
def test_a_node_that_knows_the_digest_of_the_headers_takes_all_bytes_from_peers(
    fleet: Fleet, s3: SeaweedS3, tensors: dict[str, torch.Tensor], place: str, request: pytest.FixtureRequest
) -> None:
    first, second = fleet.add("node-a"), fleet.add("node-b")
    plan = fleet.plan(source_of(request.getfixturevalue(place), s3.endpoint))
    fleet.headers_digest = fleet.load(first, plan, s3.environment())["headers_digest"]
    two = fleet.load(second, plan, s3.environment())
    assert two["downloaded_bytes"] - two["peer_bytes"] < 1000, two
    assert two["retries"] == 0, two
    assert two["headers_digest"] == fleet.headers_digest
    assert_tensors_equal(load_safetensors_dir(fleet.model_folder(second, two)), tensors)


def test_nothing_is_asked_of_peers_that_could_not_be_verified(fleet: Fleet, s3: SeaweedS3, bucket: str) -> None:
    first, second = fleet.add("node-a"), fleet.add("node-b")
    plan = fleet.plan(source_of(bucket, s3.endpoint), verify=Verify.SIZE)
    fleet.load(first, plan, s3.environment())
    two = fleet.load(second, plan, s3.environment())
    assert (two["outcome"], two["peer_bytes"]) == ("loaded", 0), two


def header_requests(server: FaultyServer, node: str) -> list[Request]:
    """Returns the requests of a node for short ranges of the tensors, after the first one, which is the index."""
    found = server.find_requests(method="GET", key="bucket/model/weights.tensors")
    ranges = [each for each in found if f"Credential={node}/" in each.headers["authorization"]]
    return [each for each in ranges if length_of(each) < 64 << 10 and "bytes=0-" not in each.headers["range"]]


def length_of(request: Request) -> int:
    first, last = request.headers["range"].removeprefix("bytes=").split("-")
    return int(last) + 1 - int(first)


@pytest.mark.parametrize("reader", ["of this release", "of the last release"])
def test_of_nodes_that_load_at_once_one_reads_all_headers_and_the_others_take_them_from_peers(
    fleet: Fleet, reader: str
) -> None:
    sizes = make_tensors(count=40, rows=256)
    tensors = sizes | {f"norms.{number}": tensor for number, tensor in enumerate(make_tensors(rows=2).values())}
    of_own_share = 5  # short tensors of the node's own share, each with its header
    names = ["node-a", "node-b", "node-c"]
    limits = Limits(workers=1, connections=4, part_size=128 << 10, bandwidth=3 << 20)
    with FaultyServer() as server:
        server.put("bucket/model/weights.tensors", to_tensors_file(dict(sorted(tensors.items()))))
        server.put("bucket/model/config.json", CONFIG)
        plan = fleet.plan(source_of("bucket", server.endpoint), limits=limits)
        fleet.tasks = {"node-b": AWAIT_HEADERS, "node-c": AWAIT_HEADERS}
        if reader == "of this release":  # one of the last release doesn't understand that it is to read
            fleet.tasks["node-a"] = READ_HEADERS
        with contextlib.ExitStack() as stack:
            running = [
                stack.enter_context(
                    fleet.loading(
                        fleet.add(name),
                        plan,
                        {"AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"},
                    )
                )
                for name in names
            ]
            reports = [finish(each) for each in running]
        found = {name: len(header_requests(server, name)) for name in names}
    for name, report in zip(names, reports, strict=True):
        assert (report["outcome"], report["dropped_peers"]) == ("loaded", []), json.dumps(report)
        assert report["headers_digest"] == reports[0]["headers_digest"] != ""
        assert_tensors_equal(load_safetensors_dir(fleet.model_folder(fleet.nodes[name], report)), tensors)
    if reader == "of this release":
        assert reports[0]["headers_digest"] == fleet.headers_digest
        assert max(found["node-b"], found["node-c"]) <= of_own_share, found
        assert found["node-a"] >= 30, found
    else:
        assert min(found.values()) > of_own_share, "each reads them, after it has waited"
