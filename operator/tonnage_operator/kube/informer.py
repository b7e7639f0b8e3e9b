"""A local picture of one kind of objects: listed, then watched. Nothing vanishes unnoticed in between.

Only what ``fact`` keeps of an object is stored, so that thousands of pods cost little.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from tonnage_operator.kube.client import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.kube.resources import Resource

_LOG = logging.getLogger("tonnage.watch")

T = TypeVar("T")

_MAX_BACKOFF: Final = 30.0
_HEALTHY_WATCH_SECONDS: Final = 10.0
"""Seconds after which a watch has been a good one, so that its end is no failure upon failure."""


class Store(Generic[T]):
    """What is known of one kind of objects, by uid, with change callbacks.

    A version that is older than the one known is ignored: our own writes are put in at once, and the watch may be late.
    """

    def __init__(self, parse: Callable[[dict[str, Any]], T]) -> None:
        self._parse = parse
        self._items: dict[str, tuple[int, T]] = {}
        self._handlers: list[Callable[[T | None, T | None], None]] = []
        self._deleted_versions: dict[str, int] = {}

    def add_event_handler(self, handler: Callable[[T | None, T | None], None]) -> None:
        """Calls ``listener(before, after)`` at each change; None stands for nothing there."""
        self._handlers.append(handler)

    def __iter__(self) -> Iterator[T]:
        return iter([item for _, item in self._items.values()])

    def __len__(self) -> int:
        return len(self._items)

    def get(self, uid: str) -> T | None:
        """Returns one object's fact."""
        found = self._items.get(uid)
        return found[1] if found else None

    def put(self, body: dict[str, Any]) -> None:
        """Takes in an object as the server has it."""
        uid, resource_version = body["metadata"]["uid"], int(body["metadata"]["resourceVersion"])
        cached = self._items.get(uid)
        if (cached and resource_version <= cached[0]) or resource_version <= self._deleted_versions.get(uid, -1):
            return
        item = self._parse(body)
        self._items[uid] = (resource_version, item)
        if cached is None or cached[1] != item:
            self._notify(cached[1] if cached else None, item)

    def remove(self, uid: str, resource_version: int = -1) -> None:
        """Takes note that an object is gone."""
        if resource_version >= 0:
            self._deleted_versions[uid] = resource_version
            while len(self._deleted_versions) > 1000:
                del self._deleted_versions[next(iter(self._deleted_versions))]
        cached = self._items.pop(uid, None)
        if cached:
            self._notify(cached[1], None)

    def replace(self, bodies: Iterable[dict[str, Any]]) -> None:
        """Takes in a whole list: what isn't in it is gone."""
        present = set()
        for body in bodies:
            present.add(body["metadata"]["uid"])
            self.put(body)
        for uid in [uid for uid in self._items if uid not in present]:
            self.remove(uid)

    def _notify(self, before: T | None, after: T | None) -> None:
        for handler in self._handlers:
            handler(before, after)


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
                    self.store.replace(items)
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
                    await asyncio.sleep(min(_MAX_BACKOFF, 0.5 * 2.0**failures) * (0.5 + random.random() / 2))  # noqa: S311
