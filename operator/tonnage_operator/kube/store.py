"""Objects of one kind as the API server has them, with change handlers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LOG = logging.getLogger("tonnage.watch")

T = TypeVar("T")

EventHandler = Callable[[T | None, T | None], None]
"""Gets an object before and after a change: None before for a new one, None after for a deleted one."""


UnreadableHandler = Callable[[dict[str, Any], str], None]
"""Gets the metadata of an object that can't be parsed, and why."""


class Store(Generic[T]):
    """Parsed objects of one kind by uid, with event handlers.

    An older version than the stored one is ignored, because the result of a write is stored at once and its watch event
    arrives later. Objects that can't be parsed are treated as if they did not exist.
    """

    def __init__(self, parse: Callable[[dict[str, Any]], T]) -> None:
        self._parse = parse
        self._items: dict[str, tuple[int, T]] = {}
        self._handlers: list[EventHandler[T]] = []
        self._deleted_versions: dict[str, int] = {}
        self._unreadable: set[str] = set()
        self._listed_version = -1
        """Resource version of the latest list, which shows all changes up to it."""
        self._unreadable_handlers: list[UnreadableHandler] = []

    def add_unreadable_handler(self, handler: UnreadableHandler) -> None:
        """Adds a handler of objects that can't be parsed; it is called once for each."""
        self._unreadable_handlers.append(handler)

    def add_event_handler(self, handler: EventHandler[T]) -> None:
        """Adds a handler of changes. Handlers run in the order in which they were added."""
        self._handlers.append(handler)

    def __iter__(self) -> Iterator[T]:
        return iter([item for _, item in self._items.values()])

    def get(self, uid: str) -> T | None:
        found = self._items.get(uid)
        return found[1] if found else None

    @property
    def unreadable(self) -> int:
        """Number of objects that can't be parsed."""
        return len(self._unreadable)

    def _set_aside(self, body: dict[str, Any], uid: str, resource_version: int, error: Exception) -> None:
        """Treats an object that can't be parsed as if it did not exist, and logs it once."""
        metadata = body["metadata"]
        if uid not in self._unreadable:
            name = "/".join(part for part in (metadata.get("namespace"), metadata["name"]) if part)
            _LOG.warning("Ignoring %s %s, which can't be read: %s", body.get("kind") or "object", name, error)
            for handler in self._unreadable_handlers:
                handler(metadata, str(error))
        self.remove(uid, resource_version)
        self._unreadable.add(uid)

    def put(self, body: dict[str, Any]) -> None:
        """Stores an object as the API server returned it, unless a list has shown what became of this version."""
        if int(body["metadata"]["resourceVersion"]) > self._listed_version:
            self._put(body)

    def _put(self, body: dict[str, Any]) -> None:
        uid, resource_version = body["metadata"]["uid"], int(body["metadata"]["resourceVersion"])
        cached = self._items.get(uid)
        if (cached and resource_version <= cached[0]) or resource_version <= self._deleted_versions.get(uid, -1):
            return
        try:
            item = self._parse(body)
        except Exception as error:  # noqa: BLE001 - annotations hold whatever their author wrote
            self._set_aside(body, uid, resource_version, error)
            return
        self._unreadable.discard(uid)
        self._items[uid] = (resource_version, item)
        if cached is None or cached[1] != item:
            self._notify(cached[1] if cached else None, item)

    def amend(self, uid: str, change: Callable[[T], T]) -> None:
        """Changes what is known of an object until its next version arrives, without a call of the handlers.

        For what follows from a request of ours whose response doesn't show it, such as a deletion.
        """
        if found := self._items.get(uid):
            self._items[uid] = (found[0], change(found[1]))

    def remove(self, uid: str, resource_version: int = -1) -> None:
        """Removes a deleted object. Versions up to ``resource_version`` are not stored again; a newer one stays."""
        if uid in self._items and 0 <= resource_version < self._items[uid][0]:
            return
        if resource_version >= 0:
            self._deleted_versions[uid] = resource_version
            while len(self._deleted_versions) > 1000:
                del self._deleted_versions[next(iter(self._deleted_versions))]
        self._unreadable.discard(uid)
        cached = self._items.pop(uid, None)
        if cached:
            self._notify(cached[1], None)

    def replace(self, bodies: Iterable[dict[str, Any]], resource_version: str) -> None:
        """Stores a whole list, and removes what is not in it.

        Args:
            bodies: All objects of the kind.
            resource_version: The list's. Objects that are newer were created while the list was read, and stay.
        """
        present = set()
        for body in bodies:
            present.add(body["metadata"]["uid"])
            self._put(body)
        known = {uid: version for uid, (version, _) in self._items.items()} | dict.fromkeys(self._unreadable, 0)
        for uid in [uid for uid, version in known.items() if uid not in present and version <= int(resource_version)]:
            self.remove(uid)
        self._listed_version = max(self._listed_version, int(resource_version))

    def _notify(self, before: T | None, after: T | None) -> None:
        for handler in self._handlers:
            handler(before, after)
