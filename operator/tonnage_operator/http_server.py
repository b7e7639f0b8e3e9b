"""HTTP servers of both processes: TLS that takes up a renewed certificate without dropping a connection, and health."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import ssl
from typing import TYPE_CHECKING, Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tonnage_operator.x509 import not_after

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tonnage_operator.telemetry import Metrics

_LOG = logging.getLogger("tonnage.serving")

CERTIFICATE_CHECK_INTERVAL: Final = 5.0
"""Seconds between two looks at the certificate's files."""


class CertificateWatcher:
    """A certificate on disk, and the TLS context that always has the last good one.

    New connections get the new certificate, open ones go on. Files that don't make a pair, as happens while they are
    being replaced, or that are garbage, change nothing: the old one stays, and that is said.
    """

    def __init__(self, cert: Path, key: Path, metrics: Metrics) -> None:
        self._cert = cert
        self._key = key
        self._metrics = metrics
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.load_cert_chain(cert, key)
        self._digest = self._read_digest()
        self._export_expiry()

    def _read_digest(self) -> str:
        digest = hashlib.sha256()
        for path in (self._cert, self._key):
            with contextlib.suppress(OSError):
                digest.update(path.read_bytes() + b"\0")
        return digest.hexdigest()

    def _export_expiry(self) -> None:
        try:
            self._metrics.certificate_expiry.set(not_after(self._cert.read_text()).timestamp())
        except (OSError, ValueError) as error:
            # OpenSSL could use it, so this is a matter of metrics alone.
            _LOG.warning("When the certificate in %s ends can't be read: %s", self._cert, error)

    def reload_if_changed(self) -> None:
        """Takes up what is on disk, if it changed and is good."""
        digest = self._read_digest()
        if digest == self._digest:
            return
        self._digest = digest
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._cert, self._key)
            self.context.load_cert_chain(self._cert, self._key)
        except (ssl.SSLError, OSError) as error:
            self._metrics.certificate_reloads.labels("failure").inc()
            _LOG.error("The certificate in %s can't be used, the old one stays in use: %s", self._cert, error)
        else:
            self._export_expiry()
            self._metrics.certificate_reloads.labels("success").inc()
            _LOG.info("Took up the new certificate in %s", self._cert)

    async def watch(self) -> None:
        """Checks now and then, until cancelled."""
        while True:
            await asyncio.sleep(CERTIFICATE_CHECK_INTERVAL)
            self.reload_if_changed()


@contextlib.asynccontextmanager
async def serve(
    app: web.Application, *, host: str, port: int, certificate: CertificateWatcher | None = None
) -> AsyncIterator[int]:
    """Serves an application; gives the port, which is chosen by the system where 0 was asked for."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=10)
    await runner.setup()
    site = web.TCPSite(runner, host, port, ssl_context=certificate.context if certificate else None, backlog=512)
    await site.start()
    watcher = asyncio.create_task(certificate.watch()) if certificate else None
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
