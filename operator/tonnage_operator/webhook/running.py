"""The webhook's process: a TLS server for reviews, and a picture of which nodes are warm."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from aiohttp import web

from tonnage_operator.api import names
from tonnage_operator.kube.gateway import Gateway
from tonnage_operator.kube.reflector import Reflector
from tonnage_operator.kube.resources import NODE_CACHES
from tonnage_operator.serving import Certificate, add_health, serve
from tonnage_operator.telemetry import Metrics
from tonnage_operator.trust import ReportCa
from tonnage_operator.webhook.review import NotAReview, Reviewer
from tonnage_operator.webhook.warmth import Warmth

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tonnage_operator.config import Listening
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.kube.access import Access

_LOG = logging.getLogger("tonnage.webhook")

PATH: Final = "/inject"
BODY_LIMIT: Final = 16 << 20
"""Bytes of a review. etcd takes objects of about 1.5 MB, and an update's review holds two."""


class Webhook:
    """One webhook process, or one in a test."""

    def __init__(self, access: Access, installation: Installation, listening: Listening) -> None:
        self._access = access
        self._installation = installation
        self._listening = listening
        self.metrics = Metrics()
        self.ready = asyncio.Event()
        self.stopping = asyncio.Event()
        self.port = 0
        self.health_port = 0
        self.certificate: Certificate | None = None

    async def run(self) -> None:
        """Runs until ``stopping`` is set."""
        listening = self._listening
        async with contextlib.AsyncExitStack() as stack:
            gateway = await stack.enter_async_context(
                Gateway(self._access, field_manager=names.FIELD_MANAGER, observe=self.metrics.observe_request)
            )
            warmth = Warmth()
            reflector = Reflector(gateway, NODE_CACHES, warmth.store)
            watching = asyncio.create_task(reflector.run(), name="watching node caches")
            stack.callback(watching.cancel)
            reviewer = Reviewer(gateway, warmth, self._installation, self.metrics)
            if self._installation.reports.ca_file:
                following = asyncio.create_task(self._follow_ca(reviewer), name="following the CA")
                stack.callback(following.cancel)
            app = web.Application(client_max_size=BODY_LIMIT)
            app.router.add_post(PATH, self._handler(reviewer))
            add_health(app, self.metrics, ready=self.ready.is_set)
            if listening.cert and listening.key:
                self.certificate = Certificate(listening.cert, listening.key, self.metrics)
            self.port = await stack.enter_async_context(
                serve(app, host=listening.host, port=listening.port, certificate=self.certificate)
            )
            health = web.Application()
            add_health(health, self.metrics, ready=self.ready.is_set)
            self.health_port = await stack.enter_async_context(
                serve(health, host=listening.host, port=listening.health_port)
            )
            synced = asyncio.create_task(reflector.synced.wait())
            stop = asyncio.create_task(self.stopping.wait())
            stack.callback(synced.cancel)
            await asyncio.wait({synced, stop, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not self.stopping.is_set() and not watching.done():
                self.ready.set()
                _LOG.info("The webhook runs")
                await asyncio.wait({stop, watching}, return_when=asyncio.FIRST_COMPLETED)
            self.ready.clear()
            stop.cancel()
            if watching.done() and not watching.cancelled():
                watching.result()

    async def _follow_ca(self, reviewer: Reviewer) -> None:
        def use(installation: Installation) -> None:
            reviewer.installation = installation

        await ReportCa(self._installation, use).watch()

    @staticmethod
    def _handler(reviewer: Reviewer) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            try:
                answer = await reviewer.answer(await request.read())
            except NotAReview as error:
                return web.Response(text=f"{error}\n", status=400)
            return web.Response(body=answer, content_type="application/json")

        return handle
