"""The gate's process. Several may run at once: they decide the same, and what is done twice changes nothing."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator.app import App
from tonnage_operator.controller.event_recorder import EventRecorder
from tonnage_operator.controller.workqueue import WorkQueue
from tonnage_operator.gate.nodes import NodeGate
from tonnage_operator.gate.state import GateState
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.informer import Informer, wait_until_synced, watch_all
from tonnage_operator.kube.resources import MODEL_WEIGHTS, NODE_CACHES, NODES

if TYPE_CHECKING:
    import contextlib

    from tonnage_operator.app import Parts
    from tonnage_operator.kube.client import KubeClient

_LOG = logging.getLogger("tonnage.gate")

FIELD_MANAGER: Final = "tonnage-gate"
_RESYNC_INTERVAL: Final = 60.0
"""Seconds between full lists, which find what a watch has lost."""


class GateApp(App):
    """The gate."""

    field_manager = FIELD_MANAGER
    _queue: WorkQueue

    async def start(self, stack: contextlib.AsyncExitStack, client: KubeClient) -> Parts:
        state = GateState(self._installation, self._enqueue)
        recorder = EventRecorder(client, self.metrics, component=FIELD_MANAGER)
        gate = NodeGate(state, client, recorder, self.metrics)
        self._queue = WorkQueue("Node", gate.reconcile, batch_delay=0.3, on_result=self._count)
        stack.push_async_callback(self._queue.close)
        self.metrics.gate_waiting.set_function(lambda: state.waiting)
        await self.serve_health(stack)
        informers: list[Informer[Any]] = [
            Informer(client, resource, store, on_watch_error=self.metrics.count_watch_restart)
            for resource, store in (
                (MODEL_WEIGHTS, state.model_store),
                (NODE_CACHES, state.entries_store),
                (NODES, state.node_store),
            )
        ]
        return [*watch_all(informers), ("resync", self._decide_after_sync(client, state, informers))]

    def _enqueue(self, name: str) -> None:
        # Before all lists are complete, a model may be missing that a node waits for.
        if self.ready.is_set():
            self._queue.add(name)

    def _count(self, result: str, seconds: float) -> None:
        self.metrics.reconciles.labels("gate", result).inc()
        self.metrics.reconcile_seconds.labels("gate").observe(seconds)

    async def _decide_after_sync(self, client: KubeClient, state: GateState, informers: list[Informer[Any]]) -> None:
        await wait_until_synced(informers)
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
