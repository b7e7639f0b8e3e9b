"""The servers that other tests use."""

from __future__ import annotations

import socket
import urllib.request
from typing import TYPE_CHECKING

import pytest

from support.faulty_server import Fault, FaultyServer, slow_down

if TYPE_CHECKING:
    from support.s3_server import SeaweedS3


def send_get(server: FaultyServer, key: str, **headers: str) -> tuple[int, bytes]:
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        lines = [f"GET /{key} HTTP/1.1", "Host: x", *(f"{n.replace('_', '-')}: {v}" for n, v in headers.items())]
        connection.sendall(("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_the_faulty_server_serves_ranges(faulty_server: FaultyServer) -> None:
    faulty_server.put("b/k", b"0123456789")
    assert send_get(faulty_server, "b/k", Range="bytes=2-4") == (206, b"234")
    assert faulty_server.find_requests()[0].range == (2, 4)


def test_the_faulty_server_checks_if_match(faulty_server: FaultyServer) -> None:
    faulty_server.put("b/k", b"0123456789")
    assert send_get(faulty_server, "b/k", If_Match='"other"')[0] == 412


def test_faults_start_and_end_as_configured(faulty_server: FaultyServer) -> None:
    faulty_server.put("b/k", b"0123456789")
    faulty_server.add_fault(slow_down(), key="b/k", skip=1, times=2)
    assert [send_get(faulty_server, "b/k")[0] for _ in range(4)] == [200, 503, 503, 200]


def test_a_reset_cuts_the_body(faulty_server: FaultyServer) -> None:
    faulty_server.put("b/k", bytes(1 << 20))
    faulty_server.add_fault(Fault(reset_after=1000))
    with pytest.raises(ConnectionResetError):
        send_get(faulty_server, "b/k")


def test_a_short_body_ends_cleanly(faulty_server: FaultyServer) -> None:
    faulty_server.put("b/k", bytes(5000))
    faulty_server.add_fault(Fault(close_after=1000))
    assert len(send_get(faulty_server, "b/k")[1]) == 1000


def test_a_stalled_response_continues_when_released(faulty_server: FaultyServer) -> None:
    faulty_server.put("b/k", bytes(5000))
    faulty_server.add_fault(Fault(stall_after=100))
    with socket.create_connection((faulty_server.host, faulty_server.port), timeout=5) as connection:
        connection.sendall(b"GET /b/k HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        faulty_server.wait_for_bytes(100)
        assert faulty_server.bytes_sent == 100
        faulty_server.release_stalled()
        faulty_server.wait_for_bytes(5000)


def test_seaweed_stores_objects_and_versions(s3: SeaweedS3) -> None:
    bucket = s3.make_bucket(versioned=True)
    s3.put(bucket, {"a b": b"one"})
    s3.put(bucket, {"a b": b"second"})
    client = s3.client()
    assert client.get_object(Bucket=bucket, Key="a b")["Body"].read() == b"second"
    assert len(client.list_object_versions(Bucket=bucket)["Versions"]) == 2


def test_seaweed_honours_presigned_urls(s3: SeaweedS3) -> None:
    bucket = s3.make_bucket()
    s3.put(bucket, {"k": b"content"})
    with urllib.request.urlopen(s3.presign(bucket, "k"), timeout=10) as response:
        assert response.read() == b"content"
