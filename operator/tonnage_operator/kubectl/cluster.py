"""Requests to the API server with the official client, with the kubeconfig and the rights of the user."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator.api import names
from tonnage_operator.kubectl.objects import Body, items, text
from tonnage_operator.kubectl.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterator

MODELS: Final = f"/apis/{names.API_VERSION}"
PAGE: Final = 500
MAX_OBJECTS: Final = 20_000
"""Objects of one list."""
TIMEOUT: Final = 30.0
"""Seconds of one request."""
WATCH_SECONDS: Final = 300
_MERGE_PATCH: Final = "application/merge-patch+json"


class ClusterError(Exception):
    """A request failed. ``next_step`` is what to do; ``status`` the HTTP status, 0 without a response."""

    def __init__(self, message: str, next_step: str, *, status: int = 0) -> None:
        super().__init__(clean(message))
        self.message = clean(message)
        self.next_step = next_step
        self.status = status

    @property
    def forbidden(self) -> bool:
        return self.status == 403

    @property
    def missing(self) -> bool:
        return self.status == 404


class Cluster:
    """An API server, as a kubeconfig names it.

    Args:
        kubeconfig: Path of the kubeconfig; empty: that of KUBECONFIG, ``~/.kube/config``, or this pod's account.
        context: Name of the context; empty: the current one.

    Raises:
        ClusterError: There is no usable kubeconfig.
    """

    def __init__(self, kubeconfig: str = "", context: str = "") -> None:
        from kubernetes.config.config_exception import ConfigException

        from kubernetes import client, config

        configuration = client.Configuration()
        self.namespace = "default"
        try:
            try:
                contexts, active = config.list_kube_config_contexts(kubeconfig or None)
                chosen = next((each for each in contexts if each["name"] == context), active) if context else active
                self.namespace = text(chosen, "context", "namespace") or "default"
                config.load_kube_config(
                    kubeconfig or None, context or None, client_configuration=configuration, persist_config=False
                )
            except ConfigException:
                if kubeconfig or context:
                    raise
                config.load_incluster_config(client_configuration=configuration)
        except (ConfigException, OSError, ValueError, KeyError, TypeError) as error:
            raise ClusterError(
                f"There is no usable kubeconfig: {error}", "Pass --kubeconfig and --context, or set KUBECONFIG."
            ) from error
        self._client = client.ApiClient(configuration)
        self._host = configuration.host

    def get(self, path: str) -> Body:
        """Returns an object.

        Raises:
            ClusterError: It doesn't exist, may not be read, or the request failed.
        """
        return self._request("GET", path)

    def list(self, path: str, **query: str) -> list[Body]:
        """Returns at most ``MAX_OBJECTS`` objects, page by page.

        Raises:
            ClusterError: They may not be listed, or a request failed.
        """
        found: list[Body] = []
        following = ""
        while len(found) < MAX_OBJECTS:
            page = {"limit": str(PAGE), **query, **({"continue": following} if following else {})}
            body = self._request("GET", path, query=page)
            found += items(body, "items")
            following = text(body, "metadata", "continue")
            if not following:
                break
        return found

    def merge_patch(self, path: str, patch: Body) -> Body:
        """Changes an object and returns it.

        Raises:
            ClusterError: It may not be changed, is invalid, or the request failed.
        """
        return self._request("PATCH", path, body=patch, content_type=_MERGE_PATCH)

    def watch(self, path: str, **query: str) -> Iterator[Body]:
        """Yields an event for each change from now on, until the API server ends the watch.

        Raises:
            ClusterError: The request failed.
        """
        query = {"watch": "true", "timeoutSeconds": str(WATCH_SECONDS), **query}
        response = self._send("GET", path, query=query, timeout=WATCH_SECONDS + TIMEOUT)
        rest = b""
        for block in response.response.stream(decode_content=True):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                event = _parse(line)
                if text(event, "type") == "ERROR":
                    return
                yield event

    def _request(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: Body | None = None,
        content_type: str = "",
    ) -> Body:  # fmt: skip
        response = self._send(method, path, query=query, body=body, content_type=content_type)
        found = _parse(response.read())
        if 200 <= response.status < 300:
            return found
        raise _refusal(response.status, found, path)

    def _send(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: Body | None = None,
        content_type: str = "", timeout: float = TIMEOUT,
    ) -> Any:  # fmt: skip  # noqa: ANN401 - the client's response has no exported type
        from urllib3.exceptions import HTTPError

        headers = {"Accept": "application/json", **({"Content-Type": content_type} if content_type else {})}
        try:
            prepared = self._client.param_serialize(
                method, path, query_params=list((query or {}).items()), header_params=headers, body=body,
                auth_settings=["BearerToken"],
            )  # fmt: skip
            return self._client.call_api(*prepared, _request_timeout=timeout)
        except (HTTPError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise ClusterError(
                f"The API server {self._host} can't be reached: {reason}",
                "Check the kubeconfig's server, the network and the proxy.",
            ) from error


def _parse(data: bytes) -> Body:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(status: int, body: Body, path: str) -> ClusterError:
    message = text(body, "message") or f"The API server answered with status {status} for {path}."
    if status == 403:
        return ClusterError(
            message, "Ask for a role with this right, such as the ClusterRole view or edit.", status=403
        )
    if status == 401:
        return ClusterError(f"The API server doesn't accept the credentials: {message}", "Log in again.", status=401)
    if status == 404 and "the server could not find the requested resource" in message:
        return ClusterError("This cluster has no ModelWeights.", "Install Tonnage's chart first.", status=404)
    return ClusterError(message, "See the message of the API server.", status=status)
