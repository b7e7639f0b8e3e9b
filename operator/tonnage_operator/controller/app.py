"""The controller's process: stores, work queues and servers, and kopf, which watches (``handlers``)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Final

import kopf
from aiohttp import web

from tonnage.contract.backoff import Backoff
from tonnage_operator.app import App
from tonnage_operator.controller import handlers
from tonnage_operator.controller.event_handlers import EventHandlers
from tonnage_operator.controller.event_recorder import EventRecorder
from tonnage_operator.controller.ignored_objects import IgnoredObjects
from tonnage_operator.controller.lists import SELECTORS
from tonnage_operator.controller.memo import ControllerMemo
from tonnage_operator.controller.metrics_recorder import MetricsRecorder, set_node_gauges
from tonnage_operator.controller.modelweights_controller import ModelWeightsController
from tonnage_operator.controller.nodecache_controller import NodeCacheController
from tonnage_operator.controller.peer_answers import PeerAnswers
from tonnage_operator.controller.peer_credentials import PeerCredentialsKeeper
from tonnage_operator.controller.report_endpoint import CONNECTIONS, ReportEndpoint
from tonnage_operator.controller.state import ControllerState
from tonnage_operator.controller.turns import Turns
from tonnage_operator.controller.waiting_pods import WaitingPods
from tonnage_operator.controller.workqueue import WorkQueue
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.resources import JOBS, PODS
from tonnage_operator.signals import stop_on_signals

if TYPE_CHECKING:
    from tonnage_operator.app import Parts
    from tonnage_operator.config import ServerOptions
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.kube.credentials import ClientConfig

_LOG = logging.getLogger("tonnage.controller")

_FIRST_RESYNC: Final = 15.0
"""Seconds until the first resync, which finds what was deleted between our first lists and kopf's."""
_RESYNC_INTERVAL: Final = 60.0
"""Seconds between resyncs: everything is listed and reconciled, whether or not anything happened.

A watch may lose an event, and no log shows it. Whatever was lost is found after this time, and where nothing was lost
nothing is written.
"""
_HEALTHY_SECONDS: Final = 60.0
"""Seconds after which kopf ran well, so that its next failure is restarted without delay."""
_BACKOFF: Final = Backoff(base=1.0, cap=30.0)
_STOP_TIMEOUT: Final = 5.0
"""Seconds that kopf is given to close its watches."""


class ControllerApp(App):
    """The controller. ``port`` is that of loaders' reports."""

    connections = CONNECTIONS

    def __init__(self, client_config: ClientConfig, installation: Installation, server_options: ServerOptions) -> None:
        super().__init__(client_config, installation, server_options)
        self._metrics_recorder = MetricsRecorder(self.metrics)
        self.state = ControllerState(installation)
        self._peer_credentials: PeerCredentialsKeeper | None = None
        self.weights_queue: WorkQueue
        self.node_queue: WorkQueue

    @property
    def idle(self) -> bool:
        """True while no key is queued or being reconciled. For tests."""
        return self.weights_queue.idle and self.node_queue.idle

    async def start(self, stack: contextlib.AsyncExitStack, client: KubeClient) -> Parts:
        self._peer_credentials = self._create_peer_credentials(client)
        self._create_queues(stack, client)
        await self.serve_health(stack, self._set_gauges)
        await self.serve(stack, self._create_report_server(client))
        event_handlers = EventHandlers(
            self.state, enqueue_weights=self.weights_queue.add, enqueue_node=self.node_queue.add
        )
        memo = ControllerMemo(
            self._client_config,
            client,
            self.state,
            event_handlers,
            self.metrics,
            synced=self.ready,
        )
        parts: Parts = [
            ("kopf", self._run_kopf(memo)),
            ("resync", self._resync(memo)),
            ("events of waiting pods", WaitingPods(self.state, EventRecorder(client, self.metrics)).run()),
            ("events of ignored objects", IgnoredObjects(self.state, EventRecorder(client, self.metrics)).run()),
            *self.watch_ca(self._set_installation),
        ]
        if self._peer_credentials:
            parts.append(("credentials of peers", self._peer_credentials.run()))
        return parts

    async def stop(self, tasks: dict[str, asyncio.Task[Any]]) -> None:
        """Lets kopf close its watches. It waits for all tasks, so the queues are closed first."""
        await self.node_queue.close()
        await self.weights_queue.close()
        await asyncio.wait({tasks["kopf"]}, timeout=_STOP_TIMEOUT)

    def _set_installation(self, installation: Installation) -> None:
        self.state.installation = installation

    def _create_peer_credentials(self, client: KubeClient) -> PeerCredentialsKeeper | None:
        installation = self._installation
        if not installation.has_peers:
            return None
        secret, server_name = installation.peers.secret, installation.peer_server_name
        return PeerCredentialsKeeper(client, secret, installation.namespace, server_name)

    def _create_queues(self, stack: contextlib.AsyncExitStack, client: KubeClient) -> None:
        weights_controller = ModelWeightsController(
            self.state,
            client,
            self.metrics,
            self._metrics_recorder,
            enqueue_node=self._enqueue_node,
        )
        node_controller = NodeCacheController(self.state, client, self.metrics, enqueue_weights=self._enqueue_weights)
        turns, observer = Turns(), self._result_observer
        self.weights_queue = WorkQueue(
            "ModelWeights", weights_controller.reconcile, turns=turns, on_result=observer("weights")
        )
        self.node_queue = WorkQueue(
            "NodeCache", node_controller.reconcile, batch_delay=0.3, turns=turns, on_result=observer("node")
        )
        stack.push_async_callback(self.node_queue.close)
        stack.push_async_callback(self.weights_queue.close)

    def _enqueue_node(self, name: str) -> None:
        self.node_queue.add(name)

    def _enqueue_weights(self, uid: str) -> None:
        self.weights_queue.add(uid)

    async def _run_kopf(self, memo: ControllerMemo) -> None:
        """Runs kopf until ``stopping`` is set, and again with backoff if it fails, as it does on a rejected watch."""
        failures = 0
        while not self.stopping.is_set():
            started = time.monotonic()
            try:
                tasks = await kopf.spawn_tasks(
                    registry=handlers.REGISTRY, memo=memo, clusterwide=True, standalone=True, stop_flag=self.stopping
                )
                # kopf's own signal handlers would wait 5 s for all tasks that are not kopf's, such as the queues'.
                stop_on_signals(self.stopping)
                await kopf.run_tasks(tasks, ignored=asyncio.all_tasks() - set(tasks))
            except Exception as error:  # noqa: BLE001 - whatever kopf could not handle; lists start from scratch
                failures = 1 if time.monotonic() - started > _HEALTHY_SECONDS else failures + 1
                delay = _BACKOFF.delay(failures)
                _LOG.warning("Watching failed, restarting in %.1f s: %s", delay, error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stopping.wait(), delay)
            else:
                self.stopping.set()

    def _result_observer(self, kind: str) -> Any:  # noqa: ANN401 - a callback
        def observe(result: str, seconds: float) -> None:
            self.metrics.reconciles.labels(kind, result).inc()
            self.metrics.reconcile_seconds.labels(kind).observe(seconds)

        return observe

    def _set_gauges(self) -> None:
        for resource in SELECTORS:
            self.metrics.unreadable.labels(resource.plural).set(self.state.store_for(resource).unreadable)
        self.metrics.unsigned.labels(JOBS.plural).set(sum(not job.signature for job in self.state.jobs))
        self.metrics.unsigned.labels(PODS.plural).set(sum(pod.forged for pod in self.state.pods))
        self.metrics.peers_ready.set(len(self.state.peers.ring))
        set_node_gauges(self.metrics, (cache.status for cache in self.state.node_caches), self.state.shortages.values())

    def _create_report_server(self, client: KubeClient) -> web.Application:
        endpoint = ReportEndpoint(
            self.state,
            client,
            self.metrics,
            self._metrics_recorder,
            has_synced=self.ready.is_set,
            enqueue_weights=self.weights_queue.add,
            enqueue_node=self.node_queue.add,
            peer_answers=PeerAnswers(
                self.state, lambda: self._peer_credentials.current if self._peer_credentials else None
            ),
        )
        app = web.Application()
        app.router.add_post("/v1/reports", endpoint.handle)
        return app

    async def _resync(self, memo: ControllerMemo) -> None:
        await memo.synced.wait()
        _LOG.info("Controller started")
        delay = _FIRST_RESYNC
        while True:
            await asyncio.sleep(delay)
            delay = _RESYNC_INTERVAL
            try:
                await memo.relist()
            except ApiError as error:
                # The watches continue, and the next resync follows.
                _LOG.warning("Resync failed: %s", error)
            else:
                memo.event_handlers.enqueue_all()
