"""Requests to the API server, through the official client, in plain dicts. Retries transient failures.

The client brings connections, TLS and authentication. Its typed APIs are not used: their models can't express a
server-side apply of some fields, and building them costs more than the request (docs/concepts/architecture.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Self, cast
from urllib.parse import urlencode

import aiohttp
import msgspec
from kubernetes.aio.client import ApiClient, ApiException
from kubernetes.aio.client.rest import RESTClientObject, RESTResponse

from tonnage.contract.backoff import Backoff
from tonnage_operator.kube.credentials import ClientConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from aiohappyeyeballs import AddrInfoType

    from tonnage_operator.kube.credentials import ClientConfig
    from tonnage_operator.kube.resources import Resource

Body = dict[str, Any]

_APPLY_PATCH: Final = "application/apply-patch+yaml"
_MERGE_PATCH: Final = "application/merge-patch+json"
_STRATEGIC_MERGE_PATCH: Final = "application/strategic-merge-patch+json"
_JSON: Final = "application/json"
_PARTIAL_METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
_USER_AGENT: Final = "tonnage-operator"
_MAX_CONNECTIONS: Final = 32
_MAX_ATTEMPTS: Final = 5
_BACKOFF: Final = Backoff(base=0.4, cap=8.0, high=1.5)
_TIMEOUT: Final = 30.0
_PAGE_SIZE: Final = 100
"""Objects that are decoded at a time: nothing else runs meanwhile, and a pod has 10 KiB."""
_WATCH_TIMEOUT: Final = 300
"""Seconds after which the server ends a watch, up to a minute more. A quiet watch may be silent for as long, because
bookmarks come only when versions move. TCP keepalive detects a dead server earlier."""
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


class ApiError(Exception):
    """An error response of the API server, or no response (status 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message

    @property
    def not_found(self) -> bool:
        """The object does not exist."""
        return self.status == 404

    @property
    def conflict(self) -> bool:
        """Another client wrote first, or another object has the name."""
        return self.status == 409

    @property
    def expired(self) -> bool:
        """The resource version is too old: list again."""
        return self.status == 410

    @property
    def namespace_terminating(self) -> bool:
        """The namespace is being deleted, so nothing can be created in it."""
        return self.status == 403 and "because it is being terminated" in self.message

    @property
    def transient(self) -> bool:
        """A retry may succeed."""
        return self.status in {0, 429, 500, 502, 503, 504}


def _parse_error(status: int, text: bytes) -> ApiError:
    try:
        body = msgspec.json.decode(text)
        return ApiError(status, body.get("reason") or "", body.get("message") or "")
    except (msgspec.MsgspecError, AttributeError, RecursionError, UnicodeError):
        return ApiError(status, "", text[:300].decode(errors="replace"))


def _keepalive_socket(address: AddrInfoType) -> socket.socket:
    """Returns a socket on which the kernel detects a dead peer within a minute."""
    family, kind, protocol, *_ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock


class _RestClient(RESTClientObject):
    """The official client's connections, on sockets that notice a dead server."""

    def _create_pool_manager(self) -> aiohttp.ClientSession:
        # With trust_env, each request would look for proxies and for a netrc file, in two turns of a thread pool.
        return aiohttp.ClientSession(connector=self._create_connector(), trust_env=False)

    def _create_connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(limit=_MAX_CONNECTIONS, ssl=self.ssl_context, socket_factory=_keepalive_socket)


class KubeClient:
    """A connection to one API server. Use as an async context manager.

    Args:
        client_config: The API server and the identity.
        field_manager: The name under which fields are managed.
        on_response: Called with verb, resource, label and HTTP status after each request; status 0: no response.
    """

    def __init__(
        self,
        client_config: ClientConfig,
        *,
        field_manager: str,
        on_response: Callable[[str, Resource, str, int], None] | None = None,
    ) -> None:
        self._client_config = client_config
        self._field_manager = field_manager
        self._on_response = on_response or (lambda *_: None)
        self._api: ApiClient | None = None
        self._clock_offset = timedelta()

    async def __aenter__(self) -> Self:
        self._api = ApiClient(self._client_config.configuration)
        self._api.rest_client = _RestClient(self._client_config.configuration)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._api:
            await self._api.close()

    def server_time(self) -> datetime:
        """Returns the API server's time, to a second or two: by its latest response, or this machine's before one."""
        return datetime.now(UTC) + self._clock_offset

    async def get(self, resource: Resource, name: str, namespace: str = "", *, timeout: float = _TIMEOUT) -> Body:  # noqa: ASYNC109
        """Returns one object."""
        return await self._send("get", resource, "GET", resource.path(namespace, name), timeout=timeout)

    async def get_or_none(self, resource: Resource, name: str, namespace: str = "") -> Body | None:
        """Returns one object, or None if it does not exist."""
        try:
            return await self.get(resource, name, namespace)
        except ApiError as error:
            if error.not_found:
                return None
            raise

    async def get_resource_version(self, resource: Resource, name: str, namespace: str = "") -> str:
        """Returns an object's current resource version, from its metadata alone; empty if it does not exist."""
        try:
            body = await self._send("get", resource, "GET", resource.path(namespace, name), accept=_PARTIAL_METADATA)
        except ApiError as error:
            if error.not_found:
                return ""
            raise
        return str(body["metadata"]["resourceVersion"])

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        timeout: float = _TIMEOUT,  # noqa: ASYNC109 - of each page
    ) -> tuple[list[Body], str]:
        """Returns all objects, page by page, and the resource version to watch from."""
        items: list[Body] = []
        query = {"limit": str(_PAGE_SIZE)}
        query |= {"labelSelector": label_selector} if label_selector else {}
        query |= {"fieldSelector": field_selector} if field_selector else {}
        while True:
            page = await self._send("list", resource, "GET", resource.path(namespace), query=query, timeout=timeout)
            items.extend(page["items"])
            metadata = page["metadata"]
            if not metadata.get("continue"):
                return items, metadata["resourceVersion"]
            query["continue"] = metadata["continue"]

    async def count(self, resource: Resource, namespace: str, *, timeout: float = _TIMEOUT) -> int:  # noqa: ASYNC109
        """Returns the number of objects in a namespace, of which the server sends one."""
        path = resource.path(namespace)
        page = await self._send("list", resource, "GET", path, query={"limit": "1"}, timeout=timeout)
        return len(page["items"]) + int(page["metadata"].get("remainingItemCount") or 0)

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
        """Server-side apply, taking over conflicting fields."""
        path = resource.path(body["metadata"].get("namespace", ""), body["metadata"]["name"])
        query = {"fieldManager": self._field_manager, "force": "true"}
        return await self._send("apply", resource, "PATCH", path, body=body, content_type=_APPLY_PATCH, query=query)

    async def update_status(
        self, resource: Resource, name: str, namespace: str, *, uid: str, resource_version: str, status: Body
    ) -> Body:
        """Replaces an object's status if its uid and resource version still match.

        One writer owns the whole status, so server-side apply would gain nothing, and for a list of a hundred items it
        costs the API server half as much again.
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
        """Merge-patches an object. Lists are replaced, so send a resource version with them."""
        path = resource.path(namespace, name, subresource)
        query = {"fieldManager": self._field_manager}
        return await self._send("patch", resource, "PATCH", path, body=patch, content_type=_MERGE_PATCH, query=query)

    async def patch_status_by_keys(self, resource: Resource, name: str, patch: Body) -> Body:
        """Patches the status of an object of Kubernetes: lists are merged by their keys, such as a condition's type."""
        query = {"fieldManager": self._field_manager}
        path = resource.path("", name, "status")
        return await self._send(
            "patch", resource, "PATCH", path, body=patch, content_type=_STRATEGIC_MERGE_PATCH, query=query,
            label=f"{resource.plural}/status",
        )  # fmt: skip

    async def delete(self, resource: Resource, name: str, namespace: str = "", *, uid: str = "") -> None:
        """Deletes an object and, in the background, its dependents. Succeeds if it is gone or has another uid."""
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
        """Yields (type, object) after a resource version, including bookmarks, until the server ends the stream.

        Raises:
            ApiError: The watch was refused or broke, or the version is too old.
        """
        query = {"watch": "1", "resourceVersion": resource_version, "allowWatchBookmarks": "true"}
        timeout_seconds = _WATCH_TIMEOUT + random.randrange(60)  # noqa: S311 - spreads reconnects
        query["timeoutSeconds"] = str(timeout_seconds)
        if label_selector:
            query["labelSelector"] = label_selector
        try:
            request = _Request("GET", resource.path(), query)
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
        except (aiohttp.ClientError, ApiException, ClientConfigError, TimeoutError, msgspec.MsgspecError) as error:
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
        """Sends one request until it succeeds or fails permanently, or attempts or time run out."""
        request = _Request(method, path, query or {}, body, content_type, accept)
        deadline = time.monotonic() + timeout
        for attempt in range(1, attempts + 1):
            remaining_seconds = max(0.1, deadline - time.monotonic())
            delay = _BACKOFF.delay(attempt)
            try:
                async with self._request(request, aiohttp.ClientTimeout(total=remaining_seconds)) as response:
                    text = await response.read()
                    self._on_response(verb, resource, label, response.status)
                    if response.status < 300:
                        return msgspec.json.decode(text)  # type: ignore[no-any-return]
                    error = _parse_error(response.status, text)
                    retry_after = response.headers.get("Retry-After", "")
                    delay = max(delay, float(retry_after)) if retry_after.isdecimal() else delay
            except (aiohttp.ClientError, ApiException, ClientConfigError, TimeoutError, OSError) as cause:
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
        request: _Request,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Makes one attempt; after a 401, one more with fresh credentials."""
        response = await self._attempt(request, timeout)
        if response.status == 401:
            response.release()
            await self._client_config.refresh(rejected=True)
            response = await self._attempt(request, timeout)
        try:
            yield response
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    async def _attempt(self, request: _Request, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:  # noqa: ASYNC109
        if self._api is None:
            raise RuntimeError("use the client as an async context manager")
        # Not param_serialize: it copies each body deeply, to convert models that are not used here.
        headers = {**request.headers, "User-Agent": _USER_AGENT}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], request.path, request.method, None)
        query = f"?{urlencode(request.query)}" if request.query else ""
        url = f"{self._client_config.configuration.host}{request.path}{query}"
        response: RESTResponse = await self._api.call_api(
            request.method, url, headers, request.body, _request_timeout=timeout
        )
        received = cast("aiohttp.ClientResponse", response.response)
        with contextlib.suppress(KeyError, ValueError):
            self._clock_offset = parsedate_to_datetime(received.headers["Date"]) - datetime.now(UTC)
        return received


@dataclass(frozen=True)
class _Request:
    """One request, as each attempt at it sends it."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    content_type: str = _JSON
    accept: str = _JSON

    @property
    def headers(self) -> dict[str, str]:
        return {"Accept": self.accept, "Content-Type": self.content_type}
