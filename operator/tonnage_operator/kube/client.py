"""Requests to the API server, in dicts. Retries what passes by itself; says the rest as errors with a sentence.

Plain aiohttp, which kopf needs anyway: the official client would add 117 MiB to the image and 30 to the process, for
models that server-side apply doesn't want.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiohappyeyeballs import AddrInfoType

    from tonnage_operator.kube.credentials import ClientConfig
    from tonnage_operator.kube.resources import Resource

Body = dict[str, Any]

_APPLY_PATCH: Final = "application/apply-patch+yaml"
_MERGE_PATCH: Final = "application/merge-patch+json"
_JSON: Final = "application/json"
_PARTIAL_METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
_MAX_CONNECTIONS: Final = 32
_MAX_ATTEMPTS: Final = 5
_TIMEOUT: Final = 30.0
_PAGE_SIZE: Final = 500
_WATCH_TIMEOUT: Final = 300
"""Seconds after which the server ends a watch, up to a minute more. Where nothing happens it may be silent for as long:
bookmarks come just where versions move. A server that is gone is told by the kernel's probes long before."""
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


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
    def transient(self) -> bool:
        """It usually passes by itself."""
        return self.status in {0, 429, 500, 502, 503, 504}


def _parse_error(status: int, text: bytes) -> ApiError:
    try:
        body = msgspec.json.decode(text)
        return ApiError(status, body.get("reason") or "", body.get("message") or "", body.get("details"))
    except (msgspec.MsgspecError, AttributeError):
        return ApiError(status, "", text[:300].decode(errors="replace"))


def _keepalive_socket(address: AddrInfoType) -> socket.socket:
    """Returns a socket on which the kernel finds out within a minute that the other side is gone."""
    family, kind, protocol, *_ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock


class KubeClient:
    """A connection to one API server. Use as an async context manager."""

    def __init__(
        self,
        client_config: ClientConfig,
        *,
        field_manager: str,
        on_response: Callable[[str, Resource, str, int], None] | None = None,
        user_agent: str = "tonnage-operator",
    ) -> None:
        self._client_config = client_config
        self._field_manager = field_manager
        self._on_response = on_response or (lambda *_: None)
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        context = self._client_config.ssl_context() or True
        connector = aiohttp.TCPConnector(ssl=context, limit=_MAX_CONNECTIONS, socket_factory=_keepalive_socket)
        self._session = aiohttp.ClientSession(connector=connector, headers={"User-Agent": self._user_agent})
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    async def get(self, resource: Resource, name: str, namespace: str = "", *, timeout: float = _TIMEOUT) -> Body:  # noqa: ASYNC109
        """Returns one object."""
        return await self._send("get", resource, "GET", resource.path(namespace, name), timeout=timeout)

    async def get_or_none(self, resource: Resource, name: str, namespace: str = "") -> Body | None:
        """Returns one object, or None where there is none."""
        try:
            return await self.get(resource, name, namespace)
        except ApiError as error:
            if error.not_found:
                return None
            raise

    async def get_resource_version(self, resource: Resource, name: str, namespace: str = "") -> str:
        """Returns the version of one object as it is now, asking for no more than that; empty where there is none."""
        try:
            body = await self._send("get", resource, "GET", resource.path(namespace, name), accept=_PARTIAL_METADATA)
        except ApiError as error:
            if error.not_found:
                return ""
            raise
        return str(body["metadata"]["resourceVersion"])

    async def list(self, resource: Resource, *, label_selector: str = "") -> tuple[list[Body], str]:
        """Returns all objects, page by page, and the resource version to watch from."""
        items: list[Body] = []
        query = {"limit": str(_PAGE_SIZE), **({"labelSelector": label_selector} if label_selector else {})}
        while True:
            page = await self._send("list", resource, "GET", resource.path(), query=query)
            items.extend(page["items"])
            metadata = page["metadata"]
            if not metadata.get("continue"):
                return items, metadata["resourceVersion"]
            query["continue"] = metadata["continue"]

    async def create(
        self,
        resource: Resource,
        body: Body,
        namespace: str = "",
        *,
        timeout: float = _TIMEOUT,  # noqa: ASYNC109 - of all attempts together
        attempts: int = _MAX_ATTEMPTS,
    ) -> Body:
        """Creates an object."""
        path = resource.path(namespace)
        return await self._send("create", resource, "POST", path, body=body, timeout=timeout, attempts=attempts)

    async def apply(self, resource: Resource, body: Body) -> Body:
        """Makes the object as the body says: server-side apply, taking fields over from others."""
        path = resource.path(body["metadata"].get("namespace", ""), body["metadata"]["name"])
        query = {"fieldManager": self._field_manager, "force": "true"}
        return await self._send("apply", resource, "PATCH", path, body=body, content_type=_APPLY_PATCH, query=query)

    async def update_status(
        self, resource: Resource, name: str, namespace: str, *, uid: str, resource_version: str, status: Body
    ) -> Body:
        """Replaces an object's status, if the object is the one of that uid and version.

        All of a status has one writer, so nothing is gained by an owner for each of its fields, and for a list of a
        hundred items server-side apply costs the API server half as much again.
        """
        metadata = {"name": name, "uid": uid, "resourceVersion": resource_version}
        if namespace:
            metadata["namespace"] = namespace
        body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, "status": status}
        path = resource.path(namespace, name, "status")
        query = {"fieldManager": self._field_manager}
        return await self._send(
            "update", resource, "PUT", path, body=body, query=query, label=f"{resource.plural}/status"
        )

    async def merge_patch(
        self, resource: Resource, name: str, namespace: str, patch: Body, *, subresource: str = ""
    ) -> Body:
        """Changes some fields of an object; lists are replaced, so give a resource version with them."""
        path = resource.path(namespace, name, subresource)
        query = {"fieldManager": self._field_manager}
        return await self._send("patch", resource, "PATCH", path, body=patch, content_type=_MERGE_PATCH, query=query)

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

    async def watch(
        self, resource: Resource, resource_version: str, *, label_selector: str = ""
    ) -> AsyncIterator[tuple[str, Body]]:
        """Yields (type, object) from a resource version on, bookmarks included, until the server ends the stream.

        Raises:
            ApiError: It was refused, broke, or said that the version is too old.
        """
        query = {"watch": "1", "resourceVersion": resource_version, "allowWatchBookmarks": "true"}
        timeout_seconds = _WATCH_TIMEOUT + random.randrange(60)  # noqa: S311 - spreads reconnects
        query["timeoutSeconds"] = str(timeout_seconds)
        if label_selector:
            query["labelSelector"] = label_selector
        try:
            request = _PreparedRequest.build("GET", resource.path(), query=query)
            async with self._request(request, aiohttp.ClientTimeout(sock_read=timeout_seconds + 30.0)) as response:
                self._on_response("watch", resource, "", response.status)
                if response.status != 200:
                    raise _parse_error(response.status, await response.read())
                remainder = b""
                async for chunk in response.content.iter_any():
                    *lines, remainder = (remainder + chunk).split(b"\n")
                    for line in lines:
                        event = msgspec.json.decode(line)
                        if event["type"] == "ERROR":
                            status = event["object"]
                            raise ApiError(status.get("code", 0), status.get("reason", ""), status.get("message", ""))
                        yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError) as error:
            raise ApiError(0, "WatchBroken", f"The watch of {resource.plural} broke: {error!r}") from error

    async def _send(
        self,
        verb: str,
        resource: Resource,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Body | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
        timeout: float = _TIMEOUT,  # noqa: ASYNC109 - of all attempts together
        attempts: int = _MAX_ATTEMPTS,
        label: str = "",
    ) -> Body:
        """Sends one request until it is answered for good, the attempts are used up, or time is."""
        request = _PreparedRequest.build(method, path, query=query, body=body, content_type=content_type, accept=accept)
        deadline = time.monotonic() + timeout
        for attempt in range(1, attempts + 1):
            remaining_seconds = max(0.1, deadline - time.monotonic())
            delay = min(8.0, 0.2 * 2.0**attempt) * (0.5 + random.random())  # noqa: S311
            try:
                async with self._request(request, aiohttp.ClientTimeout(total=remaining_seconds)) as response:
                    text = await response.read()
                    self._on_response(verb, resource, label, response.status)
                    if response.status < 300:
                        return msgspec.json.decode(text)  # type: ignore[no-any-return]
                    error = _parse_error(response.status, text)
                    retry_after = response.headers.get("Retry-After", "")
                    delay = max(delay, float(retry_after)) if retry_after.isdecimal() else delay
            except (aiohttp.ClientError, TimeoutError, OSError) as cause:
                self._on_response(verb, resource, label, 0)
                error = ApiError(0, "Unreachable", f"{method} {path}: {cause!r}")
            retried = error.transient or error.status == 401
            if not retried or attempt == attempts or time.monotonic() + delay > deadline:
                raise error
            await asyncio.sleep(delay)
        raise AssertionError  # the last attempt returns or raises

    @contextlib.asynccontextmanager
    async def _request(
        self,
        request: _PreparedRequest,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Makes one attempt; a token that is refused is replaced once."""
        response = await self._attempt(request, timeout, force_refresh=False)
        if response.status == 401:
            response.release()
            response = await self._attempt(request, timeout, force_refresh=True)
        try:
            yield response
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    async def _attempt(
        self,
        request: _PreparedRequest,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
        *,
        force_refresh: bool,
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("use the gateway as a context manager")
        token = await self._client_config.bearer_token(force_refresh=force_refresh)
        headers = {**request.headers, "Authorization": f"Bearer {token}"} if token else request.headers
        url = self._client_config.server + request.path
        return await self._session.request(
            request.method, url, params=request.query, data=request.data, headers=headers, timeout=timeout
        )


@dataclass(frozen=True)
class _PreparedRequest:
    """One request, as each attempt at it sends it."""

    method: str
    path: str
    query: dict[str, str] | None
    data: bytes | None
    headers: dict[str, str]

    @classmethod
    def build(
        cls,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Body | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
    ) -> _PreparedRequest:
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = content_type
        return cls(method, path, query, None if body is None else msgspec.json.encode(body), headers)
