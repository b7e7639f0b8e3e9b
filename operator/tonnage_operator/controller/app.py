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
from tonnage_operator.controller.event_handlers import EventHandlers
from tonnage_operator.controller.metrics_recorder import MetricsRecorder, set_node_gauges
from tonnage_operator.controller.modelweights_controller import ModelWeightsController
from tonnage_operator.controller.nodecache_controller import NodeCacheController
from tonnage_operator.controller.report_endpoint import ReportEndpoint
from tonnage_operator.controller.state import ControllerState
from tonnage_operator.controller.workqueue import WorkQueue
from tonnage_operator.http_server import CertificateWatcher, add_health_routes, serve
from tonnage_operator.kube.client import ApiError, KubeClient
from tonnage_operator.kube.informer import Informer
from tonnage_operator.kube.resources import JOBS, MODEL_WEIGHTS, NODE_CACHES, NODES, PODS
from tonnage_operator.telemetry import Metrics
from tonnage_operator.tls import CaWatcher

if TYPE_CHECKING:
    from tonnage_operator.config import ServerOptions
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.kube.credentials import ClientConfig

_LOG = logging.getLogger("tonnage.controller")

_RESYNC_INTERVAL: Final = 600.0
"""Seconds between two looks at everything, whether or not anything happened."""


class ControllerApp:
    """One controller process, or one in a test."""

    def __init__(self, client_config: ClientConfig, installation: Installation, server_options: ServerOptions) -> None:
        self._client_config = client_config
        self._installation = installation
        self._server_options = server_options
        self.metrics = Metrics()
        self._metrics_recorder = MetricsRecorder(self.metrics)
        self.state = ControllerState(installation)
        self.ready = asyncio.Event()
        self.stopping = asyncio.Event()
        self.report_port = 0
        self.health_port = 0
        self.weights_queue: WorkQueue
        self.node_queue: WorkQueue

    @property
    def idle(self) -> bool:
        """Nothing is waiting to be worked on."""
        return self.weights_queue.idle and self.node_queue.idle

    async def run(self) -> None:
        """Runs until ``stopping`` is set or a part of it ends; the latter is an error."""
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                KubeClient(
                    self._client_config, field_manager=names.FIELD_MANAGER, on_response=self.metrics.observe_request
                )
            )
            weights_controller = ModelWeightsController(self.state, client, self.metrics, self._metrics_recorder)
            node_controller = NodeCacheController(self.state, client, self.metrics)
            self.weights_queue = WorkQueue(
                "ModelWeights", weights_controller.reconcile, on_result=self._result_observer("weights")
            )
            self.node_queue = WorkQueue(
                "NodeCache", node_controller.reconcile, batch_delay=0.3, on_result=self._result_observer("node")
            )
            stack.push_async_callback(self.node_queue.close)
            stack.push_async_callback(self.weights_queue.close)
            await self._start_servers(stack, client)
            stop = asyncio.create_task(self.stopping.wait(), name="stop")
            stack.callback(stop.cancel)
            tasks = await self._start_informers(stack, client, stop)
            if stop.done():
                return
            event_handlers = EventHandlers(
                self.state, enqueue_weights=self.weights_queue.add, enqueue_node=self.node_queue.add
            )
            event_handlers.register()
            event_handlers.enqueue_all()
            tasks.append(asyncio.create_task(self._resync(client, event_handlers), name="resync"))
            tasks.append(asyncio.create_task(self._run_kopf(), name="kopf"))
            if self._installation.reports.ca_file:
                tasks.append(asyncio.create_task(self._watch_ca(), name="following the CA"))
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

    def _result_observer(self, kind: str) -> Any:  # noqa: ANN401 - a callback
        def observe(result: str, seconds: float) -> None:
            self.metrics.reconciles.labels(kind, result).inc()
            self.metrics.reconcile_seconds.labels(kind).observe(seconds)

        return observe

    def _set_node_gauges(self) -> None:
        set_node_gauges(self.metrics, (cache.status for cache in self.state.node_caches))

    async def _start_servers(self, stack: contextlib.AsyncExitStack, client: KubeClient) -> None:
        server_options = self._server_options
        health = web.Application()
        add_health_routes(health, self.metrics, is_ready=self.ready.is_set, before_scrape=self._set_node_gauges)
        self.health_port = await stack.enter_async_context(
            serve(health, host=server_options.host, port=server_options.health_port)
        )
        endpoint = ReportEndpoint(
            self.state,
            client,
            self.metrics,
            self._metrics_recorder,
            has_synced=self.ready.is_set,
            enqueue_weights=self.weights_queue.add,
            enqueue_node=self.node_queue.add,
        )
        app = web.Application()
        app.router.add_post("/v1/reports", endpoint.handle)
        certificate = None
        if server_options.cert and server_options.key:
            certificate = CertificateWatcher(server_options.cert, server_options.key, self.metrics)
        self.report_port = await stack.enter_async_context(
            serve(app, host=server_options.host, port=server_options.port, certificate=certificate)
        )

    async def _start_informers(
        self, stack: contextlib.AsyncExitStack, client: KubeClient, stop: asyncio.Task[Any]
    ) -> list[asyncio.Task[Any]]:
        """Starts all pictures and returns when each is complete: nothing may be decided before. Or when told to end."""
        state = self.state
        job_selector = f"{names.MANAGED_BY}={names.MANAGER}"
        on_watch_error = self.metrics.count_watch_restart
        informers: list[Informer[Any]] = [
            Informer(client, NODES, state.nodes, on_watch_error=on_watch_error),
            Informer(client, JOBS, state.jobs, label_selector=job_selector, on_watch_error=on_watch_error),
            Informer(client, PODS, state.pods, label_selector=names.ROLE, on_watch_error=on_watch_error),
            Informer(client, NODE_CACHES, state.node_caches, on_watch_error=on_watch_error),
        ]
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(each.run(), name=f"watching {index}") for index, each in enumerate(informers)
        ]
        for task in tasks:
            stack.callback(task.cancel)
        synced = asyncio.create_task(self._wait_for_sync(client, informers), name="first lists")
        stack.callback(synced.cancel)
        await asyncio.wait({synced, stop, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in (synced, *tasks):
            if task.done():
                task.result()
        return tasks

    async def _wait_for_sync(self, client: KubeClient, informers: list[Informer[Any]]) -> None:
        for each in informers:
            await each.synced.wait()
        while True:
            try:
                items, _ = await client.list(MODEL_WEIGHTS)
            except ApiError as error:
                _LOG.warning("Listing ModelWeights: %s", error.message)
                await asyncio.sleep(2)
            else:
                self.state.weights.replace(items)
                return

    async def _watch_ca(self) -> None:
        def set_installation(installation: Installation) -> None:
            self.state.installation = installation

        await CaWatcher(self._installation, set_installation).watch()

    async def _resync(self, client: KubeClient, event_handlers: EventHandlers) -> None:
        while True:
            await asyncio.sleep(_RESYNC_INTERVAL)
            try:
                items, _ = await client.list(MODEL_WEIGHTS)
            except ApiError as error:
                # The next one will do; the watch is alive meanwhile.
                _LOG.warning("Listing everything failed: %s", error)
                continue
            self.state.weights.replace(items)
            event_handlers.enqueue_all()

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
                server=self._client_config.server,
                ca_path=self._client_config.ca_file,
                insecure=self._client_config.insecure,
                token=await self._client_config.bearer_token(force_refresh=True),
                scheme="Bearer",
                certificate_path=self._client_config.client_cert,
                private_key_path=self._client_config.client_key,
                expiration=datetime.now(UTC) + timedelta(minutes=10),
            )

        async def on_event(event: kopf.RawEvent, **_: Any) -> None:  # noqa: ANN401 - kopf's protocol
            body: Any = event["object"]
            if event["type"] == "DELETED":
                resource_version = int(body["metadata"]["resourceVersion"])
                self.state.weights.remove(body["metadata"]["uid"], resource_version)
            else:
                self.state.weights.put(dict(body))

        kopf.on.login(registry=registry, id="login")(login)
        kopf.on.event(names.GROUP, names.VERSION, names.MODEL_WEIGHTS_PLURAL, registry=registry, id="changed")(on_event)
        await kopf.operator(
            registry=registry, settings=settings, clusterwide=True, standalone=True, stop_flag=self.stopping
        )
        # Kopf takes SIGTERM for itself where it runs in the main thread, and then just returns.
        self.stopping.set()
