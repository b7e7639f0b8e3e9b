"""Requests through an HTTP proxy that tunnels TLS."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from support.ranges import get_range
from tonnage.contract import Plan, S3Source
from tonnage.source.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.faulty_server import FaultyServer
    from support.tls import CertificateAuthority


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(faulty_tls_server: FaultyServer) -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that tunnels to ``faulty_tls_server`` and sends headers of its own; yields its URL and the requests."""
    seen: list[bytes] = []
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client.makefile("rb", buffering=0) as stream:
                seen.append(stream.readline())
                while stream.readline().strip():
                    pass
            server = socket.create_connection(("127.0.0.1", faulty_tls_server.port))
            client.sendall(b"HTTP/1.1 200 Connection established\r\nETag: proxy\r\nContent-Range: bytes 0-0/1\r\n\r\n")
            sockets.extend((client, server))
            for pair in ((client, server), (server, client)):
                threads.append(threading.Thread(target=pump, args=pair))
                threads[-1].start()

    acceptor = threading.Thread(target=serve)
    acceptor.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    acceptor.join()
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    for each in sockets:
        each.close()


def test_headers_of_a_proxy_are_not_those_of_the_object(
    faulty_tls_server: FaultyServer,
    authority: CertificateAuthority,
    proxy: tuple[str, list[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, seen = proxy
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", url)
    faulty_tls_server.put("b/a.tensors", b"aaaa")
    source = S3Source(
        bucket="b", prefix="", endpoint=faulty_tls_server.url, ca_bundle=str(authority.bundle), region="r-1"
    )
    environment = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    resolved = resolve(Plan(sources=(source,)), environment=environment)
    assert get_range(resolved.objects[0].target, resolved.providers[0], 1, 3) == b"aa"
    assert all(line.startswith(f"CONNECT localhost:{faulty_tls_server.port}".encode()) for line in seen)
    assert seen
