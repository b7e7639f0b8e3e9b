"""The gate's process. Several may run at once: they decide the same, and what is done twice changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from tonnage_operator.controller.event_recorder import EventRecorder
from tonnage_operator.controller.workqueue import WorkQueue
from tonnage_operator.gate.nodes import NodeGate
from tonnage_operator.gate.state import GateState
from tonnage_operator.http_server import add_health_routes, serve
from tonnage_operator.kube.client import ApiError, KubeClient
from tonnage_operator.kube.informer import Informer
from tonnage_operator.kube.resources import MODEL_WEIGHTS, NODE_CACHES, NODES
from tonnage_operator.telemetry import Metrics

if TYPE_CHECKING:
    from tonnage_operator.config import ServerOptions
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.kube.credentials import ClientConfig

_LOG = logging.getLogger("tonnage.gate")

FIELD_MANAGER: Final = "tonnage-gate"
_RESYNC_INTERVAL: Final = 60.0
"""Seconds between full lists, which find what a watch has lost."""


class GateApp:
    """One gate process, or one in a test."""

    def __init__(self, client_config: ClientConfig, installation: Installation, server_options: ServerOptions) -> None:
        self._client_config = client_config
        self._installation = installation
        self._server_options = server_options
        self.metrics = Metrics()
        self.ready = asyncio.Event()
        self.stopping = asyncio.Event()
        self.health_port = 0
        self._queue: WorkQueue

    async def run(self) -> None:
        """Runs until ``stopping`` is set, or raises when a part of it fails."""
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                KubeClient(self._client_config, field_manager=FIELD_MANAGER, on_response=self.metrics.observe_request)
            )
            state = GateState(self._installation, self._enqueue)
            recorder = EventRecorder(client, self.metrics, component=FIELD_MANAGER)
            gate = NodeGate(state, client, recorder, self.metrics)
            self._queue = WorkQueue("Node", gate.reconcile, batch_delay=0.3, on_result=self._count)
            stack.push_async_callback(self._queue.close)
            self.metrics.gate_waiting.set_function(lambda: state.waiting)
            health = web.Application()
            add_health_routes(health, self.metrics, is_ready=self.ready.is_set)
            self.health_port = await stack.enter_async_context(
                serve(health, host=self._server_options.host, port=self._server_options.health_port)
            )
            informers: list[Informer[Any]] = [
                Informer(client, resource, store, on_watch_error=self.metrics.count_watch_restart)
                for resource, store in (
                    (MODEL_WEIGHTS, state.model_store),
                    (NODE_CACHES, state.entries_store),
                    (NODES, state.node_store),
                )
            ]
            tasks: list[asyncio.Task[Any]] = [asyncio.create_task(each.run(), name="watch") for each in informers]
            tasks.append(asyncio.create_task(self._decide_after_sync(client, state, informers), name="resync"))
            tasks.append(asyncio.create_task(self.stopping.wait(), name="stop"))
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.ready.clear()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                if not task.cancelled() and (error := task.exception()):
                    raise RuntimeError(f"{task.get_name()} failed") from error

    def _enqueue(self, name: str) -> None:
        # Before all lists are complete, a model may be missing that a node waits for.
        if self.ready.is_set():
            self._queue.add(name)

    def _count(self, result: str, seconds: float) -> None:
        self.metrics.reconciles.labels("gate", result).inc()
        self.metrics.reconcile_seconds.labels("gate").observe(seconds)

    async def _decide_after_sync(self, client: KubeClient, state: GateState, informers: list[Informer[Any]]) -> None:
        for informer in informers:
            await informer.synced.wait()
        self.ready.set()
        _LOG.info("The gate runs")
        state.enqueue_waiting()
        while True:
            await asyncio.sleep(_RESYNC_INTERVAL)
            try:
                for resource, store in ((MODEL_WEIGHTS, state.model_store), (NODE_CACHES, state.entries_store)):
                    items, version = await client.list(resource)
                    store.replace(items, version)
            except ApiError as error:
                _LOG.warning("Resync failed: %s", error)
            state.enqueue_waiting()
