"""The HTTP server of both processes: TLS with certificates that are reloaded, and the routes for health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tonnage_operator.tls import watch_files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tonnage_operator.telemetry import Metrics
    from tonnage_operator.tls import CertificateWatcher


@contextlib.asynccontextmanager
async def serve(
    app: web.Application, *, host: str, port: int, certificate: CertificateWatcher | None = None
) -> AsyncIterator[int]:
    """Serves an application; gives the port, which is chosen by the system where 0 was asked for."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=10)
    await runner.setup()
    site = web.TCPSite(runner, host, port, ssl_context=certificate.context if certificate else None, backlog=512)
    await site.start()
    watcher = asyncio.create_task(watch_files(certificate)) if certificate else None
    try:
        yield runner.addresses[0][1]
    finally:
        if watcher:
            watcher.cancel()
        await runner.cleanup()


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
