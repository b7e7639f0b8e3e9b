"""A local picture of one kind of objects: listed, then watched. Nothing vanishes unnoticed in between.

Only what ``fact`` keeps of an object is stored, so that thousands of pods cost little.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final, Generic

from tonnage.contract.backoff import Backoff
from tonnage_operator.kube.client import ApiError
from tonnage_operator.kube.store import Store, T

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.kube.resources import Resource

_LOG = logging.getLogger("tonnage.watch")


_BACKOFF: Final = Backoff(base=1.0, cap=30.0)
_HEALTHY_WATCH_SECONDS: Final = 10.0
"""Seconds after which a watch has been a good one, so that its end is no failure upon failure."""


class Informer(Generic[T]):
    """Keeps a store like the server."""

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        store: Store[T],
        *,
        label_selector: str = "",
        on_watch_error: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._resource = resource
        self._label_selector = label_selector
        self._on_watch_error = on_watch_error
        self.store = store
        self.synced = asyncio.Event()

    @property
    def plural(self) -> str:
        """The resource's name in URLs."""
        return self._resource.plural

    async def run(self) -> None:
        """Lists and watches until cancelled; whatever goes wrong is tried again."""
        failures = 0
        resource_version = ""
        while True:
            began = time.monotonic()
            try:
                if not resource_version:
                    items, resource_version = await self._client.list(
                        self._resource, label_selector=self._label_selector
                    )
                    self.store.replace(items, resource_version)
                    self.synced.set()
                async for event_type, body in self._client.watch(
                    self._resource, resource_version, label_selector=self._label_selector
                ):
                    resource_version = body["metadata"]["resourceVersion"]
                    if event_type == "DELETED":
                        self.store.remove(body["metadata"]["uid"], int(resource_version))
                    elif event_type != "BOOKMARK":
                        self.store.put(body)
                await asyncio.sleep(max(0.0, began + 1.0 - time.monotonic()))  # as a rule it has lasted minutes
            except ApiError as error:
                self._on_watch_error(self._resource.plural)
                failures = 1 if time.monotonic() - began > _HEALTHY_WATCH_SECONDS else failures + 1
                if error.reason != "WatchBroken" or failures > 1:
                    resource_version = ""  # too old, refused, or broken twice: list again
                if not error.expired:
                    level = logging.INFO if failures == 1 else logging.WARNING
                    _LOG.log(level, "Watching %s: %s", self._resource.plural, error.message)
                    await asyncio.sleep(_BACKOFF.delay(failures))


def watch_all(informers: Sequence[Informer[Any]]) -> list[tuple[str, Coroutine[Any, Any, None]]]:
    """Returns name and coroutine of what keeps each store like the server."""
    return [(f"watch of {each.plural}", each.run()) for each in informers]


async def wait_until_synced(informers: Sequence[Informer[Any]]) -> None:
    """Waits until each store has been filled once."""
    for each in informers:
        await each.synced.wait()
