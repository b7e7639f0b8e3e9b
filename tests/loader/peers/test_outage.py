"""A bucket that is down while peers have everything."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec
import pytest

from support.models import assert_tensors_equal, load_safetensors_dir
from support.peer_fleet import finish, source_of
from support.ports import free_ports
from support.stalling_proxy import StallingProxy
from support.waiting import eventually

if TYPE_CHECKING:
    import torch

    from support.peer_fleet import Fleet
    from support.s3_server import SeaweedS3


@pytest.mark.parametrize("kind", ["tensors", "safetensors"])
def test_while_the_bucket_is_down_a_load_succeeds_if_its_caller_has_proven_access_lately(
    fleet: Fleet, s3: SeaweedS3, bucket: str, safetensors_bucket: str, tensors: dict[str, torch.Tensor], kind: str
) -> None:
    # The place of the objects is the proxy's, which is then closed: for these nodes the bucket is down.
    with StallingProxy(f"127.0.0.1:{s3.port}") as proxy:
        endpoint = f"http://{proxy.address}"
        source = source_of(bucket if kind == "tensors" else safetensors_bucket, endpoint)
        environment = {**s3.environment(), "AWS_ENDPOINT_URL_S3": endpoint}
        first, second, third = (fleet.add(name) for name in ("node-a", "node-b", "node-c"))
        one = fleet.load(first, fleet.plan(source), environment)
        assert one["outcome"] == "loaded", one
        fleet.headers_digest = one["headers_digest"]
        two = fleet.load(second, fleet.plan(source), environment)
        assert two["outcome"] == "loaded", two
    plan = msgspec.structs.replace(fleet.plan(source), expected_digest=one["digest"], entry=one["entry"])
    three = fleet.load(third, plan, environment)
    assert three["outcome"] == "loaded", three
    assert three["peer_bytes"] == three["downloaded_bytes"] > 0
    assert_tensors_equal(load_safetensors_dir(fleet.model_folder(third, three)), tensors)


def test_a_bucket_that_goes_down_in_the_middle_of_a_load_is_not_missed_while_peers_have_everything(
    fleet: Fleet, s3: SeaweedS3, bucket: str, tensors: dict[str, torch.Tensor]
) -> None:
    first, second = fleet.add("node-a", serve=False), fleet.add("node-b", serve=False)
    with contextlib.ExitStack() as store:
        endpoint = f"http://{store.enter_context(StallingProxy(f'127.0.0.1:{s3.port}')).address}"
        environment = {**s3.environment(), "AWS_ENDPOINT_URL_S3": endpoint}
        plan = fleet.plan(source_of(bucket, endpoint))
        one = fleet.load(first, plan, environment)
        fleet.headers_digest = one["headers_digest"]
        fleet.serve(first, "--rate", "600000")
        with fleet.loading(second, plan, environment) as process:
            folder = second.media["memory"] / one["entry"] / ".tonnage" / "partial"
            eventually(
                lambda: any(path.stat().st_size > 400 for path in folder.glob("*/journal")), timeout=30, interval=0.005
            )
            store.close()
            two = finish(process)
    assert two["outcome"] == "loaded", two
    assert_tensors_equal(load_safetensors_dir(fleet.model_folder(second, two)), tensors)


def test_a_caller_that_has_proven_nothing_is_refused_with_a_sentence_why(
    fleet: Fleet, s3: SeaweedS3, bucket: str
) -> None:
    first, second = fleet.add("node-a"), fleet.add("node-b")
    one = fleet.load(first, fleet.plan(source_of(bucket, s3.endpoint)), s3.environment())
    fleet.headers_digest = one["headers_digest"]
    down = f"http://127.0.0.1:{free_ports(1)[0]}"
    plan = msgspec.structs.replace(
        fleet.plan(source_of(bucket, down)), expected_digest=one["digest"], entry=one["entry"]
    )
    two = fleet.load(second, plan, {**s3.environment(), "AWS_ENDPOINT_URL_S3": down})
    assert (two["outcome"], two["reason"]) == ("failed", "EndpointUnreachable"), two
    assert "Access to the objects was not proven within the last 10 minutes" in two["message"], two
