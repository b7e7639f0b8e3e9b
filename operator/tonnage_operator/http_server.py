"""The HTTP server of both processes: TLS, limits for connections, and the routes for health and metrics."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import contextlib
import logging
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tonnage_operator.connection_limits import (
    Connection,
    ConnectionLimits,
    ConnectionRefused,
    largest_body,
    make_room,
)
from tonnage_operator.tls import watch_files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tonnage_operator.telemetry import Metrics
    from tonnage_operator.tls import CertificateWatcher

_LOG = logging.getLogger("tonnage.http")

_BACKLOG: Final = 512
_ACCEPT_PAUSE: Final = 1.0
"""Seconds until the next attempt after a connection could not be accepted, for example without file descriptors."""
_SHUTDOWN_TIMEOUT: Final = 10.0
_LINGERING_TIME: Final = 2.0
"""Seconds that the rest of a rejected request's body is read and dropped, so that the client reads the response."""
_READ_BUFFER: Final = 16 << 10
_TLS_BUFFER: Final = 16 << 10
"""Bytes of asyncio's read buffer of each TLS connection, which it allocates before the handshake: 256 KiB by
default."""


class BodyRejected(Exception):
    """A request's body is too large, or did not arrive. ``status`` is the status of the response."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_body(request: web.Request, *, max_bytes: int) -> bytes:
    """Reads the body of a request, which must arrive in time.

    Raises:
        BodyRejected: It has more than ``max_bytes``, or the connection was closed.
    """
    too_large = BodyRejected(413, f"The body has more than {max_bytes} bytes.")
    if (request.content_length or 0) > max_bytes:
        raise too_large
    body, served = bytearray(), request.get(_SERVED)
    try:
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > max_bytes:
                raise too_large
            if served:
                served.received(len(body))
    except (OSError, web.RequestPayloadError) as error:
        raise BodyRejected(400, "The body did not arrive.") from error
    if served:
        served.handle_request()
    return bytes(body)


@contextlib.asynccontextmanager
async def serve(
    app: web.Application,
    *,
    host: str,
    port: int,
    certificate: CertificateWatcher | None = None,
    limits: ConnectionLimits | None = None,
) -> AsyncIterator[int]:
    """Serves an application; gives the port, which is chosen by the system where 0 was asked for."""
    asyncio.sslproto.SSLProtocol.max_size = _TLS_BUFFER
    _LOG.addFilter(_is_no_client_error)
    server = _Server(certificate, limits or ConnectionLimits())
    app.middlewares.append(server.middleware)
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=_SHUTDOWN_TIMEOUT,
        lingering_time=_LINGERING_TIME,
        read_bufsize=_READ_BUFFER,
        auto_decompress=False,  # a small body could become a large one
        logger=_LOG,
    )
    await runner.setup()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    listener.setblocking(False)  # noqa: FBT003
    tasks = [asyncio.create_task(server.accept(listener, runner), name="accepting connections")]
    if certificate:
        tasks.append(asyncio.create_task(watch_files(certificate), name="certificate watcher"))
    try:
        yield listener.getsockname()[1]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        listener.close()
        server.cancel_handshakes()
        await runner.cleanup()


class _Server:
    """The open connections of one listening socket."""

    def __init__(self, certificate: CertificateWatcher | None, limits: ConnectionLimits) -> None:
        self._certificate = certificate
        self.limits = limits
        self.connections: dict[Connection, _Accepted | _Served] = {}
        self.by_transport: dict[asyncio.BaseTransport, _Served] = {}

    async def accept(self, listener: socket.socket, runner: web.AppRunner) -> None:
        """Accepts connections until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listener)
            except ConnectionError:
                continue  # the client is gone
            except OSError as error:
                _LOG.warning("A connection can't be accepted: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            connection = Connection(address[0], loop.time())
            try:
                displaced = make_room(self.connections, connection.peer, self.limits)
            except ConnectionRefused:
                accepted.close()
            else:
                if displaced:
                    self.connections.pop(displaced).close()
                task = asyncio.create_task(self._open(accepted, connection, runner))
                self.connections[connection] = _Accepted(task)
            await asyncio.sleep(0)  # the others' turn: sock_accept doesn't wait while there are clients in the backlog

    async def _open(self, accepted: socket.socket, connection: Connection, runner: web.AppRunner) -> None:
        """Does the handshake."""
        handler = runner.server
        context = self._certificate.context if self._certificate else None
        try:
            if handler is not None:
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: _Served(self, connection, handler()),
                    accepted,
                    ssl=context,
                    ssl_handshake_timeout=self.limits.handshake if context else None,
                )
        except (OSError, asyncio.CancelledError):
            self.connections.pop(connection, None)
            accepted.close()

    def limit_bodies(self) -> None:
        """Closes connections until the bodies that are being received are within their limit."""
        while largest := largest_body(self.connections, self.limits):
            self.connections.pop(largest).close()

    def cancel_handshakes(self) -> None:
        for each in list(self.connections.values()):
            if isinstance(each, _Accepted):
                each.close()

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        served = self.by_transport.get(request.transport) if request.transport else None
        if served is None:
            return await handler(request)  # it is closed already
        request[_SERVED] = served
        if request.can_read_body:
            served.wait(self.limits.body)
        else:
            served.handle_request()
        try:
            return await handler(request)
        finally:
            served.wait(self.limits.idle)


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A connection until the end of its handshake."""

    task: asyncio.Task[None]

    def close(self) -> None:
        self.task.cancel()


class _Served(asyncio.Protocol):
    """A connection that passes its events to aiohttp, and is closed when its client takes too long."""

    def __init__(self, server: _Server, connection: Connection, handler: asyncio.Protocol) -> None:
        self._server = server
        self._connection = connection
        self._handler = handler
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        # The rest of the protocol is aiohttp's.
        self.data_received = handler.data_received  # type: ignore[method-assign]
        self.eof_received = handler.eof_received  # type: ignore[method-assign]
        self.pause_writing = handler.pause_writing  # type: ignore[method-assign]
        self.resume_writing = handler.resume_writing  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._server.connections[self._connection] = self
        self._server.by_transport[transport] = self
        self.wait(self._server.limits.head)
        self._handler.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._server.connections.pop(self._connection, None)
        if self._transport is not None:
            self._server.by_transport.pop(self._transport, None)
        self._handler.connection_lost(exc)

    def wait(self, seconds: float) -> None:
        """Waits for the client, which has this time for its next step."""
        loop = asyncio.get_running_loop()
        self._stop_timer()
        if self._transport is not None and not self._transport.is_closing():
            self._timer = loop.call_later(seconds, self.close)
        self._connection.waiting_since = loop.time()
        self._connection.body_bytes = 0

    def received(self, body_bytes: int) -> None:
        """Takes note of the bytes of the body that have arrived."""
        self._connection.body_bytes = body_bytes
        self._server.limit_bodies()

    def handle_request(self) -> None:
        """The request is complete: the client waits for the server."""
        self._stop_timer()
        self._connection.waiting_since = None
        self._connection.has_sent_request = True
        self._connection.body_bytes = 0

    def close(self) -> None:
        """Closes the connection at once."""
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_SERVED: Final = web.RequestKey("served", _Served)


def _is_no_client_error(record: logging.LogRecord) -> bool:
    """Keeps malformed requests, which are answered with 400, out of the log, which every client could fill."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def add_health_routes(
    app: web.Application,
    metrics: Metrics,
    *,
    is_ready: Callable[[], bool],
    before_scrape: Callable[[], None] | None = None,
) -> None:
    """Adds ``/healthz``, ``/readyz`` and ``/metrics``.

    Args:
        app: To it.
        metrics: What ``/metrics`` shows.
        is_ready: Whether ``/readyz`` answers 200 or 503.
        before_scrape: Called before metrics are shown.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n") if is_ready() else web.Response(text="not yet\n", status=503)

    async def serve_metrics(_: web.Request) -> web.Response:
        if before_scrape:
            before_scrape()
        body = generate_latest(metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", serve_metrics)
