"""A local picture of one kind of objects: listed, then watched. Nothing vanishes unnoticed in between.

Only what ``fact`` keeps of an object is stored, so that thousands of pods cost little.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from tonnage_operator.kube.gateway import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tonnage_operator.kube.gateway import Gateway
    from tonnage_operator.kube.resources import Resource

_LOG = logging.getLogger("tonnage.watch")

T = TypeVar("T")

_RETRY_CAP: Final = 30.0
_GOOD: Final = 10.0
"""Seconds after which a watch has been a good one, so that its end is no failure upon failure."""


class Store(Generic[T]):
    """What is known of one kind of objects, by uid, with change callbacks.

    A version that is older than the one known is ignored: our own writes are put in at once, and the watch may be late.
    """

    def __init__(self, fact: Callable[[dict[str, Any]], T]) -> None:
        self._fact = fact
        self._items: dict[str, tuple[int, T]] = {}
        self._listeners: list[Callable[[T | None, T | None], None]] = []
        self._gone: dict[str, int] = {}

    def listen(self, listener: Callable[[T | None, T | None], None]) -> None:
        """Calls ``listener(before, after)`` at each change; None stands for nothing there."""
        self._listeners.append(listener)

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
        uid, version = body["metadata"]["uid"], int(body["metadata"]["resourceVersion"])
        known = self._items.get(uid)
        if (known and version <= known[0]) or version <= self._gone.get(uid, -1):
            return
        fact = self._fact(body)
        self._items[uid] = (version, fact)
        if known is None or known[1] != fact:
            self._tell(known[1] if known else None, fact)

    def remove(self, uid: str, version: int = -1) -> None:
        """Takes note that an object is gone."""
        if version >= 0:
            self._gone[uid] = version
            while len(self._gone) > 1000:
                del self._gone[next(iter(self._gone))]
        known = self._items.pop(uid, None)
        if known:
            self._tell(known[1], None)

    def replace(self, bodies: Iterable[dict[str, Any]]) -> None:
        """Takes in a whole list: what isn't in it is gone."""
        present = set()
        for body in bodies:
            present.add(body["metadata"]["uid"])
            self.put(body)
        for uid in [uid for uid in self._items if uid not in present]:
            self.remove(uid)

    def _tell(self, before: T | None, after: T | None) -> None:
        for listener in self._listeners:
            listener(before, after)


class Reflector(Generic[T]):
    """Keeps a store like the server."""

    def __init__(
        self,
        gateway: Gateway,
        resource: Resource,
        store: Store[T],
        *,
        selector: str = "",
        on_break: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._gateway = gateway
        self._resource = resource
        self._selector = selector
        self._on_break = on_break
        self.store = store
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """Lists and watches until cancelled; whatever goes wrong is tried again."""
        failures = 0
        version = ""
        while True:
            began = time.monotonic()
            try:
                if not version:
                    items, version = await self._gateway.list(self._resource, selector=self._selector)
                    self.store.replace(items)
                    self.synced.set()
                async for kind, body in self._gateway.watch(self._resource, version, selector=self._selector):
                    version = body["metadata"]["resourceVersion"]
                    if kind == "DELETED":
                        self.store.remove(body["metadata"]["uid"], int(version))
                    elif kind != "BOOKMARK":
                        self.store.put(body)
                await asyncio.sleep(max(0.0, began + 1.0 - time.monotonic()))  # as a rule it has lasted minutes
            except ApiError as error:
                self._on_break(self._resource.plural)
                failures = 1 if time.monotonic() - began > _GOOD else failures + 1
                if error.reason != "WatchBroken" or failures > 1:
                    version = ""  # too old, refused, or broken twice: list again
                if not error.expired:
                    level = logging.INFO if failures == 1 else logging.WARNING
                    _LOG.log(level, "Watching %s: %s", self._resource.plural, error.message)
                    await asyncio.sleep(min(_RETRY_CAP, 0.5 * 2.0**failures) * (0.5 + random.random() / 2))  # noqa: S311
