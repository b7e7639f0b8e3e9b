"""The webhook's process: a TLS server for reviews, and a picture of which nodes are warm."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from tonnage_operator.app import App
from tonnage_operator.domain.observed.node import parse_node
from tonnage_operator.http_server import BodyRejected, add_health_routes, read_body
from tonnage_operator.kube.informer import Informer, wait_until_synced, watch_all
from tonnage_operator.kube.resources import NODE_CACHES, NODES
from tonnage_operator.kube.store import Store
from tonnage_operator.webhook.admission_handler import AdmissionHandler, InvalidReview
from tonnage_operator.webhook.consent_handler import ConsentHandler
from tonnage_operator.webhook.warm_nodes import WarmNodes

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Awaitable, Callable, Collection

    from tonnage_operator.app import Parts
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.kube.client import KubeClient

_LOG = logging.getLogger("tonnage.webhook")

INJECT_PATH: Final = "/inject"
CONSENT_PATH: Final = "/consent"
MAX_BODY_BYTES: Final = 4 << 20
"""Bytes of a review. The API server accepts requests of at most 3 MiB, and a created pod's review holds it once."""


class WebhookApp(App):
    """The webhook. ``port`` is that of reviews."""

    async def start(self, stack: contextlib.AsyncExitStack, client: KubeClient) -> Parts:
        warm_nodes, nodes = WarmNodes(), Store(parse_node)
        informers: list[Informer[Any]] = [
            Informer(client, NODE_CACHES, warm_nodes.store),
            Informer(client, NODES, nodes),
        ]
        admission_handler = AdmissionHandler(client, warm_nodes, nodes, self._installation, self.metrics)
        consent_handler = ConsentHandler(client, self.metrics)
        app = web.Application()
        for path, answer in ((INJECT_PATH, admission_handler.handle), (CONSENT_PATH, consent_handler.handle)):
            for with_token in (path, f"{path}/{{token}}"):
                app.router.add_post(with_token, self._handler(answer))
        add_health_routes(app, self.metrics, is_ready=self.ready.is_set)
        await self.serve(stack, app)
        await self.serve_health(stack)

        def set_installation(installation: Installation) -> None:
            admission_handler.installation = installation

        readiness = ("readiness", self._become_ready(informers))
        return [*watch_all(informers), *self.watch_ca(set_installation), readiness]

    async def _become_ready(self, informers: list[Informer[Any]]) -> None:
        await wait_until_synced(informers)
        self.ready.set()
        _LOG.info("The webhook runs")
        await self.stopping.wait()

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
