"""The cluster's S3 server: its users, its counts of requests, and its restart."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

if TYPE_CHECKING:
    from local_cluster.cluster import Cluster
    from local_cluster_support.namespace import Namespace

KEY = "a folder/model+1.tensors"
BODY = bytes(range(256)) * 4096


@pytest.fixture
def bucket(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    name: str = request.node.name.replace("_", "-")[:60].rstrip("-")
    cluster.object_storage.client().create_bucket(Bucket=name)
    cluster.object_storage.client().put_object(Bucket=name, Key=KEY, Body=BODY)
    return name


def test_gets_of_an_object_and_of_ranges_are_counted(cluster: Cluster, bucket: str) -> None:
    storage, s3 = cluster.object_storage, cluster.object_storage.client()
    assert storage.gets(bucket, KEY) == 0
    assert s3.get_object(Bucket=bucket, Key=KEY)["Body"].read() == BODY
    part = s3.get_object(Bucket=bucket, Key=KEY, Range="bytes=100-199")["Body"].read()
    assert part == BODY[100:200]
    s3.head_object(Bucket=bucket, Key=KEY)
    assert storage.gets(bucket, KEY) == 2
    assert storage.bytes_served(bucket, KEY) == len(BODY) + 100
    assert storage.requests()[-1].method == "HEAD"


def test_each_user_has_the_permissions_of_its_name(cluster: Cluster, bucket: str) -> None:
    storage = cluster.object_storage
    assert storage.client("reader").get_object(Bucket=bucket, Key=KEY)["Body"].read() == BODY
    with pytest.raises(ClientError, match="AccessDenied"):
        storage.client("reader").put_object(Bucket=bucket, Key=KEY, Body=b"")
    with pytest.raises(ClientError, match=r"403|AccessDenied"):
        storage.client("stranger").get_object(Bucket=bucket, Key=KEY)
    assert storage.gets(bucket, KEY) == 1


def test_a_stopped_server_refuses_connections_and_keeps_its_objects_and_counts(cluster: Cluster, bucket: str) -> None:
    storage, s3 = cluster.object_storage, cluster.object_storage.client()
    s3.get_object(Bucket=bucket, Key=KEY)["Body"].read()
    storage.stop()
    with pytest.raises(EndpointConnectionError):
        s3.get_object(Bucket=bucket, Key=KEY)
    storage.start()
    assert s3.get_object(Bucket=bucket, Key=KEY)["Body"].read() == BODY
    assert storage.gets(bucket, KEY) == 2


def test_a_held_part_of_an_object_is_answered_when_the_hold_ends(cluster: Cluster, bucket: str) -> None:
    storage = cluster.object_storage

    def read(start: int) -> bytes:
        body: bytes = storage.client().get_object(Bucket=bucket, Key=KEY, Range=f"bytes={start}-")["Body"].read()
        return body

    with ThreadPoolExecutor(1) as pool:
        with storage.hold(bucket, KEY, start=1000):
            held = pool.submit(read, 1000)
            assert read(999) == BODY[999:]
            with pytest.raises(TimeoutError):
                held.result(timeout=0.2)
            assert storage.gets(bucket, KEY) == 1
        assert held.result(timeout=10) == BODY[1000:]
    assert storage.gets(bucket, KEY) == 2


def test_pods_reach_the_server_at_the_same_url(cluster: Cluster, bucket: str, namespace: Namespace) -> None:
    url = cluster.object_storage.client().generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": KEY})
    assert namespace.run_fetch("client", url).startswith("200 OK ")
    assert cluster.object_storage.bytes_served(bucket, KEY) == len(BODY)


def test_the_repr_of_a_user_has_no_secret(cluster: Cluster) -> None:
    identity = cluster.object_storage.user("admin")
    assert identity.secret_key not in repr(identity)
