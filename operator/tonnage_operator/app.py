"""What controller, webhook and gate have in common: how a process of the operator starts and ends."""

from __future__ import annotations

import abc
import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, ClassVar

from aiohttp import web

from tonnage_operator.api import names
from tonnage_operator.connection_limits import ConnectionLimits
from tonnage_operator.http_server import add_health_routes, serve
from tonnage_operator.kube.client import KubeClient
from tonnage_operator.telemetry import Metrics
from tonnage_operator.tls import CaWatcher, CertificateWatcher, watch_files

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tonnage_operator.config import ServerOptions
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.kube.credentials import ClientConfig

    Parts = list[tuple[str, Coroutine[Any, Any, Any]]]


class App(abc.ABC):
    """One process, or one in a test. It ends when ``stopping`` is set.

    Attributes:
        metrics: The metrics that it serves.
        ready: Set while it does its work.
        stopping: Set it to end the process.
        port: The port that it listens on, unless it serves health and metrics only.
        health_port: The port of health and metrics.
        certificate: The certificate of ``port``; None: plain HTTP.
    """

    field_manager: ClassVar[str] = names.FIELD_MANAGER
    connections: ClassVar[ConnectionLimits] = ConnectionLimits()
    """Limits of the connections to ``port``."""

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

    @abc.abstractmethod
    async def start(self, stack: contextlib.AsyncExitStack, client: KubeClient) -> Parts:
        """Starts what ends with the stack, and returns the names and coroutines of what runs until the end."""

    async def stop(self, tasks: dict[str, asyncio.Task[Any]]) -> None:
        """Ends what needs an orderly end, before all parts are cancelled. ``tasks`` are by name."""
        del tasks

    async def run(self) -> None:
        """Runs until ``stopping`` is set.

        Raises:
            RuntimeError: A part ended with an error, which is the cause.
        """
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                KubeClient(
                    self._client_config, field_manager=self.field_manager, on_response=self.metrics.observe_request
                )
            )
            parts = [*await self.start(stack, client), ("stop", self.stopping.wait())]
            tasks = {name: asyncio.create_task(part, name=name) for name, part in parts}
            try:
                done, _ = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
                self.stopping.set()
                await self.stop(tasks)
            finally:
                self.ready.clear()
                for task in tasks.values():
                    task.cancel()
                await asyncio.gather(*tasks.values(), return_exceptions=True)
            for task in done:
                if not task.cancelled() and (error := task.exception()):
                    raise RuntimeError(f"{task.get_name()} failed") from error

    async def serve(self, stack: contextlib.AsyncExitStack, app: web.Application) -> None:
        """Serves requests at ``port`` until the stack ends, with the certificate of the options."""
        options = self._server_options
        if options.cert and options.key:
            self.certificate = CertificateWatcher(options.cert, options.key, self.metrics, client_ca=options.client_ca)
        self.port = await stack.enter_async_context(
            serve(app, host=options.host, port=options.port, certificate=self.certificate, limits=self.connections)
        )

    def watch_ca(self, set_installation: Callable[[Installation], None]) -> Parts:
        """Returns the part that calls the function with another installation when the CA of reports has changed."""
        if not self._installation.reports.ca_file:
            return []
        return [("CA watcher", watch_files(CaWatcher(self._installation, set_installation)))]

    async def serve_health(
        self, stack: contextlib.AsyncExitStack, before_scrape: Callable[[], None] | None = None
    ) -> None:
        """Serves health and metrics at ``health_port`` until the stack ends."""
        app = web.Application()
        add_health_routes(app, self.metrics, is_ready=self.ready.is_set, before_scrape=before_scrape)
        options = self._server_options
        self.health_port = await stack.enter_async_context(serve(app, host=options.host, port=options.health_port))
