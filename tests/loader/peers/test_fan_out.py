"""Loads take bytes from other nodes: real loaders, the real nginx, a real S3 server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.models import CONFIG, assert_tensors_equal, load_safetensors_dir
from support.peer_fleet import source_of
from tonnage.contract import Verify

if TYPE_CHECKING:
    import torch

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
