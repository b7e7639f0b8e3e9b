"""The servers that other tests lean on do what they say."""

from __future__ import annotations

import socket
import urllib.request
from typing import TYPE_CHECKING

import pytest

from support.faulty_server import Fault, FaultyServer, unavailable

if TYPE_CHECKING:
    from support.s3_server import SeaweedS3


def ask(server: FaultyServer, key: str, **headers: str) -> tuple[int, bytes]:
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        lines = [f"GET /{key} HTTP/1.1", "Host: x", *(f"{n.replace('_', '-')}: {v}" for n, v in headers.items())]
        connection.sendall(("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_the_faulty_server_serves_ranges(faulty: FaultyServer) -> None:
    faulty.put("b/k", b"0123456789")
    assert ask(faulty, "b/k", Range="bytes=2-4") == (206, b"234")
    assert faulty.seen()[0].range == (2, 4)


def test_the_faulty_server_checks_if_match(faulty: FaultyServer) -> None:
    faulty.put("b/k", b"0123456789")
    assert ask(faulty, "b/k", If_Match='"other"')[0] == 412


def test_faults_start_and_end_as_told(faulty: FaultyServer) -> None:
    faulty.put("b/k", b"0123456789")
    faulty.fault(unavailable(), key="b/k", skip=1, times=2)
    assert [ask(faulty, "b/k")[0] for _ in range(4)] == [200, 503, 503, 200]


def test_a_reset_cuts_the_body(faulty: FaultyServer) -> None:
    faulty.put("b/k", bytes(1 << 20))
    faulty.fault(Fault(reset_after=1000))
    with pytest.raises(ConnectionResetError):
        ask(faulty, "b/k")


def test_a_short_body_ends_cleanly(faulty: FaultyServer) -> None:
    faulty.put("b/k", bytes(5000))
    faulty.fault(Fault(close_after=1000))
    assert len(ask(faulty, "b/k")[1]) == 1000


def test_a_stalled_answer_goes_on_when_released(faulty: FaultyServer) -> None:
    faulty.put("b/k", bytes(5000))
    faulty.fault(Fault(stall_after=100))
    with socket.create_connection((faulty.host, faulty.port), timeout=5) as connection:
        connection.sendall(b"GET /b/k HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        faulty.wait_for_bytes(100)
        assert faulty.bytes_sent == 100
        faulty.release()
        faulty.wait_for_bytes(5000)


def test_seaweed_takes_objects_and_keeps_versions(s3: SeaweedS3) -> None:
    bucket = s3.make_bucket(versioned=True)
    s3.put(bucket, {"a b": b"one"})
    s3.put(bucket, {"a b": b"second"})
    client = s3.client()
    assert client.get_object(Bucket=bucket, Key="a b")["Body"].read() == b"second"
    assert len(client.list_object_versions(Bucket=bucket)["Versions"]) == 2


def test_seaweed_honours_presigned_urls(s3: SeaweedS3) -> None:
    bucket = s3.make_bucket()
    s3.put(bucket, {"k": b"content"})
    with urllib.request.urlopen(s3.presign(bucket, "k"), timeout=10) as answer:
        assert answer.read() == b"content"
