"""The webhook's process: a TLS server for reviews, and a picture of which nodes are warm."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from tonnage_operator.api import names
from tonnage_operator.domain.observed.node import parse_node
from tonnage_operator.http_server import BodyRejected, add_health_routes, read_body, serve
from tonnage_operator.kube.client import KubeClient
from tonnage_operator.kube.informer import Informer
from tonnage_operator.kube.resources import NODE_CACHES, NODES
from tonnage_operator.kube.store import Store
from tonnage_operator.telemetry import Metrics
from tonnage_operator.tls import CaWatcher, CertificateWatcher, watch_files
from tonnage_operator.webhook.admission_handler import AdmissionHandler, InvalidReview
from tonnage_operator.webhook.consent_handler import ConsentHandler
from tonnage_operator.webhook.warm_nodes import WarmNodes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from tonnage_operator.config import ServerOptions
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.kube.credentials import ClientConfig

_LOG = logging.getLogger("tonnage.webhook")

INJECT_PATH: Final = "/inject"
CONSENT_PATH: Final = "/consent"
MAX_BODY_BYTES: Final = 4 << 20
"""Bytes of a review. The API server accepts requests of at most 3 MiB, and a created pod's review holds it once."""


class WebhookApp:
    """One webhook process, or one in a test."""

    def __init__(self, client_config: ClientConfig, installation: Installation, server_options: ServerOptions) -> None:
        self._client_config = client_config
        self._installation = installation
        self._server_options = server_options
        self.metrics = Metrics()
        self.ready = asyncio.Event()
        self.stopping = asyncio.Event()
        self.port = 0
        self.health_port = 0
        self.certificate: CertificateWatcher | None = None

    async def run(self) -> None:
        """Runs until ``stopping`` is set."""
        server_options = self._server_options
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                KubeClient(
                    self._client_config, field_manager=names.FIELD_MANAGER, on_response=self.metrics.observe_request
                )
            )
            warm_nodes, nodes = WarmNodes(), Store(parse_node)
            informers: list[Informer[Any]] = [
                Informer(client, NODE_CACHES, warm_nodes.store),
                Informer(client, NODES, nodes),
            ]
            watches = [asyncio.create_task(each.run(), name="watching nodes and their caches") for each in informers]
            for each in watches:
                stack.callback(each.cancel)
            admission_handler = AdmissionHandler(client, warm_nodes, nodes, self._installation, self.metrics)
            if self._installation.reports.ca_file:
                ca_task = asyncio.create_task(self._watch_ca(admission_handler), name="following the CA")
                stack.callback(ca_task.cancel)
            app = web.Application()
            consent_handler = ConsentHandler(client, self.metrics)
            for path, answer in ((INJECT_PATH, admission_handler.handle), (CONSENT_PATH, consent_handler.handle)):
                for with_token in (path, f"{path}/{{token}}"):
                    app.router.add_post(with_token, self._handler(answer))
            add_health_routes(app, self.metrics, is_ready=self.ready.is_set)
            if server_options.cert and server_options.key:
                self.certificate = CertificateWatcher(
                    server_options.cert, server_options.key, self.metrics, client_ca=server_options.client_ca
                )
            self.port = await stack.enter_async_context(
                serve(app, host=server_options.host, port=server_options.port, certificate=self.certificate)
            )
            health = web.Application()
            add_health_routes(health, self.metrics, is_ready=self.ready.is_set)
            self.health_port = await stack.enter_async_context(
                serve(health, host=server_options.host, port=server_options.health_port)
            )
            synced = asyncio.create_task(_wait_for_all(informers))
            stop = asyncio.create_task(self.stopping.wait())
            stack.callback(synced.cancel)
            await asyncio.wait({synced, stop, *watches}, return_when=asyncio.FIRST_COMPLETED)
            if not self.stopping.is_set() and not any(each.done() for each in watches):
                self.ready.set()
                _LOG.info("The webhook runs")
                await asyncio.wait({stop, *watches}, return_when=asyncio.FIRST_COMPLETED)
            self.ready.clear()
            stop.cancel()
            for each in watches:
                if each.done() and not each.cancelled():
                    each.result()

    async def _watch_ca(self, admission_handler: AdmissionHandler) -> None:
        def set_installation(installation: Installation) -> None:
            admission_handler.installation = installation

        await watch_files(CaWatcher(self._installation, set_installation))

    def _handler(self, answer: Callable[[bytes], Awaitable[bytes]]) -> Callable[[web.Request], Awaitable[web.Response]]:
        options, installation = self._server_options, self._installation

        async def handle(request: web.Request) -> web.Response:
            if options.client_ca and not is_allowed_client(_client_certificate(request), options.client_names):
                self.metrics.admissions.labels("unknown_client").inc()
                return web.Response(text="Reviews need a client certificate of the API server.\n", status=403)
            if installation.review_token and not installation.signing.knows_review_token(
                request.match_info.get("token", "")
            ):
                self.metrics.admissions.labels("unknown_client").inc()
                return web.Response(text="Reviews need the path in the webhook's configuration.\n", status=403)
            try:
                response = await answer(await read_body(request, max_bytes=MAX_BODY_BYTES))
            except BodyRejected as error:
                return web.Response(text=f"{error}\n", status=error.status)
            except InvalidReview as error:
                return web.Response(text=f"{error}\n", status=400)
            return web.Response(body=response, content_type="application/json")

        return handle


async def _wait_for_all(informers: list[Informer[Any]]) -> None:
    for each in informers:
        await each.synced.wait()


def _client_certificate(request: web.Request) -> dict[str, Any]:
    """Returns the verified certificate of the client, as the ssl module represents it; empty without one."""
    tls = request.get_extra_info("ssl_object")
    return (tls.getpeercert() or {}) if tls else {}


def is_allowed_client(certificate: dict[str, Any], names: Collection[str]) -> bool:
    """Returns whether a client has a certificate with one of the common names; without names, any certificate.

    ``certificate`` is as ``SSLSocket.getpeercert`` returns it: empty without a certificate.
    """
    subject = {value for part in certificate.get("subject", ()) for field, value in part if field == "commonName"}
    return bool(certificate) and (not names or not subject.isdisjoint(names))
