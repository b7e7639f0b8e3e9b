"""Requests to the API server, in dicts. Retries what passes by itself; says the rest as errors with a sentence.

Plain aiohttp, which kopf needs anyway: the official client would add 117 MiB to the image and 30 to the process, for
models that server-side apply doesn't want.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tonnage_operator.kube.access import Access
    from tonnage_operator.kube.resources import Resource

Body = dict[str, Any]

_APPLY: Final = "application/apply-patch+yaml"
_MERGE: Final = "application/merge-patch+json"
_ATTEMPTS: Final = 5
_TIMEOUT: Final = 30.0
_PAGE: Final = 500
_WATCH_SECONDS: Final = 300
_WATCH_SILENCE: Final = 120.0
"""Seconds without a line, bookmarks included (they come each minute), after which a watch is taken for dead."""


class ApiError(Exception):
    """The API server refused, or couldn't be reached."""

    def __init__(self, status: int, reason: str, message: str, details: Body | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.details = details or {}

    @property
    def not_found(self) -> bool:
        """There is no such object."""
        return self.status == 404

    @property
    def conflict(self) -> bool:
        """Someone else was faster, or the object is another one of the same name."""
        return self.status == 409

    @property
    def expired(self) -> bool:
        """The resource version is too old: list again."""
        return self.status == 410

    @property
    def passing(self) -> bool:
        """It usually passes by itself."""
        return self.status in {0, 429, 500, 502, 503, 504}


def _error(status: int, text: bytes) -> ApiError:
    try:
        body = json.loads(text)
        return ApiError(status, body.get("reason") or "", body.get("message") or "", body.get("details"))
    except (ValueError, AttributeError):
        return ApiError(status, "", text[:300].decode(errors="replace"))


class Gateway:
    """A connection to one API server. Use as an async context manager."""

    def __init__(
        self,
        access: Access,
        *,
        field_manager: str,
        observe: Callable[[str, Resource, str, int], None] | None = None,
        user_agent: str = "tonnage-operator",
    ) -> None:
        self._access = access
        self._manager = field_manager
        self._observe = observe or (lambda *_: None)
        self._agent = user_agent
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._access.ssl_context() or True, limit=64)
        self._session = aiohttp.ClientSession(connector=connector, headers={"User-Agent": self._agent})
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    async def get(self, resource: Resource, name: str, namespace: str = "", *, timeout: float = _TIMEOUT) -> Body:  # noqa: ASYNC109
        """Returns one object."""
        return await self._send("get", resource, "GET", resource.path(namespace, name), timeout=timeout)

    async def list(self, resource: Resource, *, selector: str = "") -> tuple[list[Body], str]:
        """Returns all objects, page by page, and the resource version to watch from."""
        items: list[Body] = []
        query = {"limit": str(_PAGE), **({"labelSelector": selector} if selector else {})}
        while True:
            page = await self._send("list", resource, "GET", resource.path(), query=query)
            items.extend(page["items"])
            metadata = page["metadata"]
            if not metadata.get("continue"):
                return items, metadata["resourceVersion"]
            query["continue"] = metadata["continue"]

    async def create(self, resource: Resource, body: Body, namespace: str = "") -> Body:
        """Creates an object."""
        return await self._send("create", resource, "POST", resource.path(namespace), body=body)

    async def apply(self, resource: Resource, body: Body, *, subresource: str = "") -> Body:
        """Makes the object, or a part of it, as the body says: server-side apply, taking fields over from others."""
        metadata = body["metadata"]
        path = resource.path(metadata.get("namespace", ""), metadata["name"], subresource)
        query = {"fieldManager": self._manager, "force": "true"}
        label = f"{resource.plural}/{subresource}" if subresource else ""
        return await self._send(
            "apply", resource, "PATCH", path, body=body, content_type=_APPLY, query=query, label=label
        )

    async def merge(self, resource: Resource, name: str, namespace: str, patch: Body) -> Body:
        """Changes some fields of an object; lists are replaced, so give a resource version with them."""
        path = resource.path(namespace, name)
        query = {"fieldManager": self._manager}
        return await self._send("patch", resource, "PATCH", path, body=patch, content_type=_MERGE, query=query)

    async def delete(self, resource: Resource, name: str, namespace: str = "", *, uid: str = "") -> None:
        """Deletes an object and, in the background, what it owns. One that is gone or another one is fine."""
        body: Body = {"propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            await self._send("delete", resource, "DELETE", resource.path(namespace, name), body=body)
        except ApiError as error:
            if not error.not_found and not error.conflict:
                raise

    async def watch(self, resource: Resource, version: str, *, selector: str = "") -> AsyncIterator[tuple[str, Body]]:
        """Yields (type, object) from a resource version on, bookmarks included, until the server ends the stream.

        Raises:
            ApiError: It was refused, broke, or said that the version is too old.
        """
        query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
        query["timeoutSeconds"] = str(_WATCH_SECONDS + random.randrange(60))  # noqa: S311 - spreads reconnects
        if selector:
            query["labelSelector"] = selector
        try:
            async with self._open(
                "GET", resource.path(), query=query, timeout=aiohttp.ClientTimeout(sock_read=_WATCH_SILENCE)
            ) as response:
                self._observe("watch", resource, "", response.status)
                if response.status != 200:
                    raise _error(response.status, await response.read())
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            status = event["object"]
                            raise ApiError(status.get("code", 0), status.get("reason", ""), status.get("message", ""))
                        yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ApiError(0, "WatchBroken", f"The watch of {resource.plural} broke: {error!r}") from error

    def _open(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Body | None = None,
        content_type: str = "application/json",
        timeout: aiohttp.ClientTimeout,
    ) -> _Opening:
        return _Opening(self, method, path, query, body, content_type, timeout)

    async def _send(
        self,
        verb: str,
        resource: Resource,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Body | None = None,
        content_type: str = "application/json",
        timeout: float = _TIMEOUT,  # noqa: ASYNC109 - of all attempts together
        label: str = "",
    ) -> Body:
        """Sends one request until it is answered for good, the attempts are used up, or time is."""
        deadline = time.monotonic() + timeout
        for attempt in range(1, _ATTEMPTS + 1):
            left = max(0.1, deadline - time.monotonic())
            wait = min(8.0, 0.2 * 2.0**attempt) * (0.5 + random.random())  # noqa: S311
            try:
                async with self._open(
                    method,
                    path,
                    query=query,
                    body=body,
                    content_type=content_type,
                    timeout=aiohttp.ClientTimeout(total=left),
                ) as response:
                    text = await response.read()
                    self._observe(verb, resource, label, response.status)
                    if response.status < 300:
                        return json.loads(text)  # type: ignore[no-any-return]
                    error = _error(response.status, text)
                    after = response.headers.get("Retry-After", "")
                    wait = max(wait, float(after)) if after.isdecimal() else wait
            except (aiohttp.ClientError, TimeoutError, OSError) as broken:
                self._observe(verb, resource, label, 0)
                error = ApiError(0, "Unreachable", f"{method} {path}: {broken!r}")
            retried = error.passing or error.status == 401
            if not retried or attempt == _ATTEMPTS or time.monotonic() + wait > deadline:
                raise error
            await asyncio.sleep(wait)
        raise AssertionError  # the last attempt returns or raises


class _Opening:
    """One attempt at a request, with a token; a refused token is replaced once."""

    def __init__(
        self,
        gateway: Gateway,
        method: str,
        path: str,
        query: dict[str, str] | None,
        body: Body | None,
        content_type: str,
        timeout: aiohttp.ClientTimeout,
    ) -> None:
        self._gateway = gateway
        self._method = method
        self._path = path
        self._query = query
        self._data = None if body is None else json.dumps(body).encode()
        self._type = content_type
        self._timeout = timeout
        self._response: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> aiohttp.ClientResponse:
        response = await self._attempt(fresh=False)
        if response.status == 401:
            response.release()
            response = await self._attempt(fresh=True)
        self._response = response
        return response

    async def __aexit__(self, *_: object) -> None:
        if self._response:
            self._response.close() if not self._response.content.at_eof() else self._response.release()

    async def _attempt(self, *, fresh: bool) -> aiohttp.ClientResponse:
        gateway = self._gateway
        if gateway._session is None:  # noqa: SLF001 - one thing in two classes
            raise RuntimeError("use the gateway as a context manager")
        access = gateway._access  # noqa: SLF001
        headers = {"Content-Type": self._type} if self._data is not None else {}
        if token := await access.bearer(fresh=fresh):
            headers["Authorization"] = f"Bearer {token}"
        return await gateway._session.request(  # noqa: SLF001
            self._method,
            access.server + self._path,
            params=self._query,
            data=self._data,
            headers=headers,
            timeout=self._timeout,
        )
