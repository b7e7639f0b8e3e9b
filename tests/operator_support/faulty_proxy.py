"""A way to the API server that misbehaves on demand: refusals, broken watches, answers that never arrive."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import aiohttp
from aiohttp import web

if TYPE_CHECKING:
    from operator_support.control_plane import ControlPlane

WRITE_METHODS = {"POST", "PUT", "PATCH", "DELETE"}


@dataclass
class ErrorResponse:
    """An answer in place of the server's."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)


RequestHook = Callable[[str, str], ErrorResponse | None]
"""Says by method and path whether a request is refused."""


class FaultyProxy:
    """A plain HTTP server on loopback that forwards to the API server, as the administrator."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self.on_request: RequestHook = lambda _method, _path: None
        self.drop_response_after_write: Callable[[str, str], bool] = lambda _method, _path: False
        """Called when the server has done a write; True: the answer is withheld for good."""
        self.delay_watch: Callable[[str], bool] = lambda _path: False
        """Says by path whether what a watch brings is kept back for now."""
        self.url = ""
        self.requests: list[tuple[str, str]] = []
        self.error: BaseException | None = None
        self._watches: set[asyncio.Task[object]] = set()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        if self.error:
            raise self.error
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        if self.error:
            raise self.error

    def drop_watches(self) -> None:
        """Breaks every watch that is open."""

        def drop() -> None:
            for task in list(self._watches):
                task.cancel()

        self._loop.call_soon_threadsafe(drop)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - told by the test's thread
            self.error = error
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        context = ssl.create_default_context(cafile=str(self._plane.ca_file))
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            app = web.Application(client_max_size=32 << 20)
            app.router.add_route("*", "/{path:.*}", functools.partial(self._forward, session))
            runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._started.set()
            await self._stop.wait()
            for task in list(self._watches):
                task.cancel()
            await runner.cleanup()
        await asyncio.sleep(0.3)

    async def _forward(self, session: aiohttp.ClientSession, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        if error := self.on_request(request.method, request.path_qs):
            body = {"kind": "Status", "message": "refused by the test", "code": error.status}
            return web.json_response(body, status=error.status, headers=error.headers)
        headers = {"Authorization": f"Bearer {self._plane.token}"}
        for name in ("Content-Type", "Accept"):
            if name in request.headers:
                headers[name] = request.headers[name]
        data = await request.read()
        is_watch = "watch" in request.query
        async with session.request(
            request.method,
            self._plane.url + request.path_qs,
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
                    while self.delay_watch(request.path):  # noqa: ASYNC110 - asked of a test, in another thread
                        await asyncio.sleep(0.05)
                    await response.write(chunk)
        finally:
            self._watches.discard(task) if task else None
        if request.transport:
            request.transport.abort()
        return response
