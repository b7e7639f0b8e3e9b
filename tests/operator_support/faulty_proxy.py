"""A proxy in front of the API server that injects faults: errors, broken watches, lost responses."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from operator_support.background_thread import EventLoopThread

if TYPE_CHECKING:
    from operator_support.control_plane import ControlPlane

WRITE_METHODS = {"POST", "PUT", "PATCH", "DELETE"}


@dataclass
class ErrorResponse:
    """A response in place of the server's."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)


RequestHook = Callable[[str, str], ErrorResponse | None]
"""Called with method and path (with query); returns the error to respond with, or None to forward."""


class FaultyProxy(EventLoopThread):
    """A plain HTTP server on loopback that forwards to the API server with the administrator's token."""

    def __init__(self, plane: ControlPlane) -> None:
        super().__init__()
        self.on_request: RequestHook = lambda _method, _path: None
        self.drop_response_after_write: Callable[[str, str], bool] = lambda _method, _path: False
        """Called with method and path after a successful write; True: the client never gets the response."""
        self.delay_watch: Callable[[str], bool] = lambda _path: False
        """Called with the path of a watch; True: its events are held back, until it returns False."""
        self.url = ""
        self.requests: list[tuple[str, str]] = []
        self.plane = plane
        self._watches: set[asyncio.Task[object]] = set()
        self._stop: asyncio.Event

    def request_stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)

    @property
    def open_watches(self) -> int:
        """Number of watches whose events pass through."""
        return len(self._watches)

    def drop_watches(self) -> None:
        """Breaks every open watch."""

        def drop() -> None:
            for task in list(self._watches):
                task.cancel()

        self.loop.call_soon_threadsafe(drop)

    async def main(self) -> None:
        self._stop = asyncio.Event()
        context = ssl.create_default_context(cafile=str(self.plane.ca_file))
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            app = web.Application(client_max_size=32 << 20)
            app.router.add_route("*", "/{path:.*}", functools.partial(self._forward, session))
            runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self.started.set()
            await self._stop.wait()
            for task in list(self._watches):
                task.cancel()
            await runner.cleanup()

    async def _forward(self, session: aiohttp.ClientSession, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        if error := self.on_request(request.method, request.path_qs):
            body = {"kind": "Status", "message": "refused by the test", "code": error.status}
            return web.json_response(body, status=error.status, headers=error.headers)
        headers = {"Authorization": f"Bearer {self.plane.token}"}
        for name in ("Content-Type", "Accept"):
            if name in request.headers:
                headers[name] = request.headers[name]
        data = await request.read()
        is_watch = "watch" in request.query
        async with session.request(
            request.method,
            self.plane.url + request.path_qs,
            data=data or None,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as upstream:
            if is_watch:
                return await self._stream(request, upstream)
            body_bytes = await upstream.read()
            if (
                request.method in WRITE_METHODS
                and upstream.status < 300
                and self.drop_response_after_write(request.method, request.path)
            ):
                await asyncio.sleep(3600)
            response_headers = {
                k: v for k, v in upstream.headers.items() if k in {"Content-Type", "Content-Encoding", "Retry-After"}
            }
            return web.Response(body=body_bytes, status=upstream.status, headers=response_headers)

    async def _stream(self, request: web.Request, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=upstream.status, headers={"Content-Type": "application/json"})
        await response.prepare(request)
        task = asyncio.current_task()
        if task:
            self._watches.add(task)
        try:
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                async for chunk in upstream.content.iter_any():
                    while self.delay_watch(request.path):  # noqa: ASYNC110 - a test changes it from another thread
                        await asyncio.sleep(0.05)
                    await response.write(chunk)
        finally:
            self._watches.discard(task) if task else None
        if request.transport:
            request.transport.abort()
        return response
