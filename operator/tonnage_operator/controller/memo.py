"""The memo that kopf passes to each handler of the controller."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from tonnage_operator.controller.lists import SELECTORS, relist
from tonnage_operator.kube.client import ApiError

if TYPE_CHECKING:
    from tonnage_operator.controller.event_handlers import EventHandlers
    from tonnage_operator.controller.state import ControllerState
    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.kube.credentials import ClientConfig
    from tonnage_operator.kube.resources import Resource
    from tonnage_operator.telemetry import Metrics

_LOG = logging.getLogger("tonnage.watch")

_BURST_SECONDS: Final = 5.0
"""Objects that kopf lists within this time of each other belong to one list."""
_RETRY_DELAY: Final = 2.0
"""Seconds between two attempts to list everything at the start."""


@dataclass(eq=False)
class ControllerMemo:
    """The controller's parts, shared by all handlers and all objects.

    kopf copies the memo for each object; copying this one returns it.
    """

    client_config: ClientConfig
    client: KubeClient
    state: ControllerState
    event_handlers: EventHandlers
    metrics: Metrics
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while all stores hold whole lists, so that decisions may be made."""
    _listed: dict[Resource, float] = field(default_factory=dict)
    """Monotonic time of the last object that kopf listed, by kind."""

    def __copy__(self) -> Self:
        return self

    def apply(self, resource: Resource, event_type: str | None, body: dict[str, Any]) -> None:
        """Puts a watch event into the store of its kind. ``event_type`` None: the object was listed."""
        store = self.state.store_for(resource)
        if event_type is None:
            self._count_restart(resource)
        if event_type == "DELETED":
            store.remove(body["metadata"]["uid"], int(body["metadata"]["resourceVersion"]))
        else:
            store.put(body)

    def _count_restart(self, resource: Resource) -> None:
        """Counts restarted watches: each list after the first one, which arrives as one burst of objects."""
        now = time.monotonic()
        if now - self._listed.setdefault(resource, now) > _BURST_SECONDS:
            self.metrics.count_watch_restart(resource.plural)
        self._listed[resource] = now

    async def sync(self) -> None:
        """Lists everything until that succeeds, and lets decisions begin."""
        while True:
            try:
                await self.relist()
            except ApiError as error:
                _LOG.warning("Listing all objects failed, retrying: %s", error.message)
                await asyncio.sleep(_RETRY_DELAY)
            else:
                self.event_handlers.register()
                self.event_handlers.enqueue_all()
                self.synced.set()
                return

    async def relist(self) -> None:
        """Replaces all stores by fresh lists. Finds deletions too, which a watch that was listed again does not report.

        Raises:
            ApiError: A list failed.
        """
        for resource in SELECTORS:
            await relist(self.state, self.client, resource)
