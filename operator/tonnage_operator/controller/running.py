"""The controller's process: pictures, workers, servers, and kopf watching ``ModelWeights``.

Kopf brings events and nothing more. Its daemons would not start for an object that is being deleted already, so a
restart in the middle of a deletion would skip the cleanup; workers of our own look at what is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import kopf
from aiohttp import web

from tonnage_operator.api import names
from tonnage_operator.controller.cluster import Cluster
from tonnage_operator.controller.node_loop import NodeLoop
from tonnage_operator.controller.reports import ReportEndpoint
from tonnage_operator.controller.tally import show_nodes
from tonnage_operator.controller.waking import Waking
from tonnage_operator.controller.weights_loop import WeightsLoop
from tonnage_operator.controller.workers import Workers
from tonnage_operator.kube.gateway import ApiError, Gateway
from tonnage_operator.kube.reflector import Reflector
from tonnage_operator.kube.resources import JOBS, MODEL_WEIGHTS, NODE_CACHES, NODES, PODS
from tonnage_operator.serving import Certificate, add_health, serve
from tonnage_operator.telemetry import Metrics
from tonnage_operator.trust import ReportCa

if TYPE_CHECKING:
    from tonnage_operator.config import Listening
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.kube.access import Access

_LOG = logging.getLogger("tonnage.controller")

_RESYNC: Final = 600.0
"""Seconds between two looks at everything, whether or not anything happened."""


class Controller:
    """One controller process, or one in a test."""

    def __init__(self, access: Access, installation: Installation, listening: Listening) -> None:
        self._access = access
        self._installation = installation
        self._listening = listening
        self.metrics = Metrics()
        self.cluster = Cluster(installation)
        self.ready = asyncio.Event()
        self.stopping = asyncio.Event()
        self.report_port = 0
        self.health_port = 0
        self.weights_workers: Workers
        self.node_workers: Workers

    @property
    def idle(self) -> bool:
        """Nothing is waiting to be worked on."""
        return self.weights_workers.idle and self.node_workers.idle

    async def run(self) -> None:
        """Runs until ``stopping`` is set or a part of it ends; the latter is an error."""
        async with contextlib.AsyncExitStack() as stack:
            gateway = await stack.enter_async_context(
                Gateway(self._access, field_manager=names.FIELD_MANAGER, observe=self.metrics.observe_request)
            )
            weights_loop = WeightsLoop(self.cluster, gateway, self.metrics)
            node_loop = NodeLoop(self.cluster, gateway, self.metrics)
            self.weights_workers = Workers("ModelWeights", weights_loop.reconcile, on_result=self._measure("weights"))
            self.node_workers = Workers("NodeCache", node_loop.reconcile, settle=0.3, on_result=self._measure("node"))
            stack.push_async_callback(self.node_workers.close)
            stack.push_async_callback(self.weights_workers.close)
            await self._serve(stack, gateway)
            stop = asyncio.create_task(self.stopping.wait(), name="stop")
            stack.callback(stop.cancel)
            tasks = await self._start_watching(stack, gateway, stop)
            if stop.done():
                return
            waking = Waking(self.cluster, wake_weights=self.weights_workers.wake, wake_node=self.node_workers.wake)
            waking.connect()
            waking.wake_all()
            tasks.append(asyncio.create_task(self._resync(gateway, waking), name="resync"))
            tasks.append(asyncio.create_task(self._run_kopf(), name="kopf"))
            if self._installation.reports.ca_file:
                tasks.append(asyncio.create_task(self._follow_ca(), name="following the CA"))
            tasks.append(stop)
            self.ready.set()
            _LOG.info("The controller runs")
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.ready.clear()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for task in done - {stop}:
                error = None if task.cancelled() else task.exception()
                if error is None and self.stopping.is_set():
                    continue
                raise RuntimeError(f"{task.get_name()} ended unexpectedly") from error

    def _measure(self, kind: str) -> Any:  # noqa: ANN401 - a callback
        def measure(result: str, seconds: float) -> None:
            self.metrics.reconciles.labels(kind, result).inc()
            self.metrics.reconcile_seconds.labels(kind).observe(seconds)

        return measure

    def _show_nodes(self) -> None:
        show_nodes(self.metrics, (cache.status for cache in self.cluster.caches))

    async def _serve(self, stack: contextlib.AsyncExitStack, gateway: Gateway) -> None:
        listening = self._listening
        health = web.Application()
        add_health(health, self.metrics, ready=self.ready.is_set, before=self._show_nodes)
        self.health_port = await stack.enter_async_context(
            serve(health, host=listening.host, port=listening.health_port)
        )
        endpoint = ReportEndpoint(
            self.cluster,
            gateway,
            self.metrics,
            complete=self.ready.is_set,
            wake=self.weights_workers.wake,
            wake_node=self.node_workers.wake,
        )
        app = web.Application()
        app.router.add_post("/v1/reports", endpoint.handle)
        certificate = None
        if listening.cert and listening.key:
            certificate = Certificate(listening.cert, listening.key, self.metrics)
        self.report_port = await stack.enter_async_context(
            serve(app, host=listening.host, port=listening.port, certificate=certificate)
        )

    async def _start_watching(
        self, stack: contextlib.AsyncExitStack, gateway: Gateway, stop: asyncio.Task[Any]
    ) -> list[asyncio.Task[Any]]:
        """Starts all pictures and returns when each is complete: nothing may be decided before. Or when told to end."""
        cluster = self.cluster
        managed = f"{names.MANAGED_BY}={names.MANAGER}"
        broken = self.metrics.watch_broke
        reflectors: list[Reflector[Any]] = [
            Reflector(gateway, NODES, cluster.nodes, on_break=broken),
            Reflector(gateway, JOBS, cluster.jobs, selector=managed, on_break=broken),
            Reflector(gateway, PODS, cluster.pods, selector=names.ROLE, on_break=broken),
            Reflector(gateway, NODE_CACHES, cluster.caches, on_break=broken),
        ]
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(each.run(), name=f"watching {index}") for index, each in enumerate(reflectors)
        ]
        for task in tasks:
            stack.callback(task.cancel)
        complete = asyncio.create_task(self._complete(gateway, reflectors), name="first lists")
        stack.callback(complete.cancel)
        await asyncio.wait({complete, stop, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in (complete, *tasks):
            if task.done():
                task.result()
        return tasks

    async def _complete(self, gateway: Gateway, reflectors: list[Reflector[Any]]) -> None:
        for each in reflectors:
            await each.synced.wait()
        while True:
            try:
                items, _ = await gateway.list(MODEL_WEIGHTS)
            except ApiError as error:
                _LOG.warning("Listing ModelWeights: %s", error.message)
                await asyncio.sleep(2)
            else:
                self.cluster.weights.replace(items)
                return

    async def _follow_ca(self) -> None:
        def use(installation: Installation) -> None:
            self.cluster.installation = installation

        await ReportCa(self._installation, use).watch()

    async def _resync(self, gateway: Gateway, waking: Waking) -> None:
        while True:
            await asyncio.sleep(_RESYNC)
            try:
                items, _ = await gateway.list(MODEL_WEIGHTS)
            except ApiError as error:
                # The next one will do; the watch is alive meanwhile.
                _LOG.warning("Listing everything failed: %s", error)
                continue
            self.cluster.weights.replace(items)
            waking.wake_all()

    async def _run_kopf(self) -> None:
        registry = kopf.OperatorRegistry()
        settings = kopf.OperatorSettings()
        # Kopf takes back a finalizer of this name where it sees no need for one; ours is not its business.
        settings.persistence.finalizer = f"{names.GROUP}/not-used"
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 310
        settings.watching.connect_timeout = 10
        settings.networking.request_timeout = 30

        async def login(**_: Any) -> kopf.ConnectionInfo:  # noqa: ANN401 - kopf's protocol
            return kopf.ConnectionInfo(
                server=self._access.server,
                ca_path=self._access.ca_file,
                insecure=self._access.insecure,
                token=await self._access.bearer(fresh=True),
                scheme="Bearer",
                certificate_path=self._access.client_cert,
                private_key_path=self._access.client_key,
                expiration=datetime.now(UTC) + timedelta(minutes=10),
            )

        async def changed(event: kopf.RawEvent, **_: Any) -> None:  # noqa: ANN401 - kopf's protocol
            body: Any = event["object"]
            if event["type"] == "DELETED":
                version = int(body["metadata"]["resourceVersion"])
                self.cluster.weights.remove(body["metadata"]["uid"], version)
            else:
                self.cluster.weights.put(dict(body))

        kopf.on.login(registry=registry, id="login")(login)
        kopf.on.event(names.GROUP, names.VERSION, names.MODEL_WEIGHTS_PLURAL, registry=registry, id="changed")(changed)
        await kopf.operator(
            registry=registry, settings=settings, clusterwide=True, standalone=True, stop_flag=self.stopping
        )
        # Kopf takes SIGTERM for itself where it runs in the main thread, and then just returns.
        self.stopping.set()
