"""The HTTP server, on real sockets, closes connections of clients that take too long and survives the others."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme
from aiohttp import web

from tonnage_operator.connection_limits import ConnectionLimits
from tonnage_operator.http_server import BodyRejected, read_body, serve
from tonnage_operator.telemetry import Metrics
from tonnage_operator.tls import CertificateWatcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MAX_BODY = 100_000
SHORT = ConnectionLimits(connections=8, per_peer=4, handshake=0.3, head=0.3, body=0.3, idle=0.3, body_bytes=150_000)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class EchoServer:
    """A server that answers with the size of the body, and its clients' connections."""

    def __init__(self, port: int, client_context: ssl.SSLContext) -> None:
        self.port = port
        self.client_context = client_context
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, *, tls: bool = True, source: str = "127.0.0.1") -> Streams:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.client_context if tls else None,
            server_hostname="localhost" if tls else None, local_addr=(source, 0),
        )  # fmt: skip
        self._writers.append(writer)
        return reader, writer

    async def send(self, data: bytes, *, source: str = "127.0.0.1") -> Streams:
        streams = await self.connect(source=source)
        streams[1].write(data)
        await streams[1].drain()
        return streams

    async def post(self, body: bytes, *headers: str, source: str = "127.0.0.1") -> str:
        """Posts a body on a new connection and returns the response's status and text."""
        lines = ["POST / HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", "Connection: close", *headers]
        reader, _ = await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body, source=source)
        head, _, text = (await reader.read()).partition(b"\r\n\r\n")
        return f"{head.split()[1].decode()} {text.decode()}"

    async def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


async def is_closed(streams: Streams) -> bool:
    """Waits until the server has closed a connection."""
    with contextlib.suppress(OSError):
        async with asyncio.timeout(10):
            await streams[0].read()
    return True


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EchoServer]:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(tmp_path / "tls.key"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "tls.crt"))
    context = ssl.create_default_context()
    authority.configure_trust(context)

    async def answer(request: web.Request) -> web.Response:
        try:
            body = await read_body(request, max_bytes=MAX_BODY)
        except BodyRejected as error:
            return web.Response(status=error.status, text="rejected")
        return web.Response(text=str(len(body)))

    app = web.Application()
    app.router.add_post("/", answer)
    certificate = CertificateWatcher(tmp_path / "tls.crt", tmp_path / "tls.key", Metrics())
    async with serve(app, host="127.0.0.1", port=0, certificate=certificate, limits=SHORT) as port:
        made = EchoServer(port, context)
        yield made
        await made.close()


async def test_a_client_that_sends_no_handshake_is_disconnected(server: EchoServer) -> None:
    assert await is_closed(await server.connect(tls=False))


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST / HTTP/1.1\r\nHost: a\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nshort",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
    ids=["nothing", "half a head", "half a body", "half of its chunks"],
)
async def test_a_client_that_stalls_in_a_request_is_disconnected(server: EchoServer, sent: bytes) -> None:
    assert await is_closed(await server.send(sent))


async def test_a_client_that_stays_idle_after_a_request_is_disconnected(server: EchoServer) -> None:
    reader, writer = await server.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
    assert b"200 OK" in await reader.readline()
    assert await is_closed((reader, writer))


async def test_a_client_that_sends_one_byte_after_the_other_is_disconnected(server: EchoServer) -> None:
    reader, writer = await server.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
    ended = asyncio.create_task(is_closed((reader, writer)))
    with contextlib.suppress(OSError):
        while not ended.done():
            writer.write(b"x")
            await writer.drain()
            await asyncio.wait({ended}, timeout=0.02)
    assert await ended


async def test_new_clients_are_served_while_one_peer_holds_all_connections_it_can_get(server: EchoServer) -> None:
    stalled = [await server.connect(source="127.0.0.2") for _ in range(20)]
    assert await server.post(b"abc", source="127.0.0.2") == "200 3"
    assert await server.post(b"abc") == "200 3"
    for each in stalled:
        assert await is_closed(each)


async def test_new_clients_are_served_while_many_peers_hold_connections(server: EchoServer) -> None:
    stalled = [await server.connect(source=f"127.0.1.{number}") for number in range(1, 20)]
    assert await server.post(b"abc") == "200 3"
    for each in stalled:
        assert await is_closed(each)


async def test_a_body_that_becomes_too_large_is_rejected(server: EchoServer) -> None:
    assert await server.post(b"x" * MAX_BODY) == f"200 {MAX_BODY}"
    assert await server.post(b"x" * (MAX_BODY + 1)) == "413 rejected"
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    reader, _ = await server.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 4)
    assert b"413" in await reader.readline()


async def test_a_compressed_body_is_not_expanded(server: EchoServer) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    assert await server.post(bomb, "Content-Encoding: gzip") == f"200 {len(bomb)}"


async def test_large_unfinished_bodies_are_dropped_in_favor_of_small_ones(server: EchoServer) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n"
    large = [await server.send(head + b"x" * 80_000, source=f"127.0.0.{number}") for number in (2, 3)]
    assert await server.post(b"abc") == "200 3"
    assert [await is_closed(each) for each in large] == [True, True]


async def test_malformed_requests_are_answered_and_not_logged(
    server: EchoServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for junk in (b"\x00\x01\r\n\r\n", b"GET / HTTP/1.1\r\nBad Header\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a" * 9000):
            reader, _ = await server.send(junk)
            assert b" 400 " in await reader.readline()
    assert not caplog.records
