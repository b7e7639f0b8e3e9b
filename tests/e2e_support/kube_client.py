"""A small Kubernetes client: one request for a change, one watch for a wait."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from http.client import HTTPResponse
    from pathlib import Path

Object = dict[str, Any]

FIELD_MANAGER = "e2e"
_TONNAGE = "/apis/tonnage.dev/v1alpha1"
_KINDS: dict[str, tuple[str, str, bool]] = {
    "ConfigMap": ("/api/v1", "configmaps", True),
    "Event": ("/api/v1", "events", True),
    "LimitRange": ("/api/v1", "limitranges", True),
    "Namespace": ("/api/v1", "namespaces", False),
    "Node": ("/api/v1", "nodes", False),
    "PersistentVolume": ("/api/v1", "persistentvolumes", False),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims", True),
    "Pod": ("/api/v1", "pods", True),
    "PodTemplate": ("/api/v1", "podtemplates", True),
    "Secret": ("/api/v1", "secrets", True),
    "Service": ("/api/v1", "services", True),
    "ServiceAccount": ("/api/v1", "serviceaccounts", True),
    "DaemonSet": ("/apis/apps/v1", "daemonsets", True),
    "Deployment": ("/apis/apps/v1", "deployments", True),
    "ReplicaSet": ("/apis/apps/v1", "replicasets", True),
    "StatefulSet": ("/apis/apps/v1", "statefulsets", True),
    "Job": ("/apis/batch/v1", "jobs", True),
    "MutatingWebhookConfiguration": (
        "/apis/admissionregistration.k8s.io/v1",
        "mutatingwebhookconfigurations",
        False,
    ),
    "CustomResourceDefinition": ("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions", False),
    "ModelWeights": (_TONNAGE, "modelweights", True),
    "NodeCache": (_TONNAGE, "nodecaches", False),
    "GroupRevision": (_TONNAGE, "grouprevisions", True),
}


class ApiError(Exception):
    """Error response of the API server. ``code`` is the HTTP status; the text is the message of its ``Status``."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class WaitTimeout(AssertionError):
    """A wait timed out; the text has the last observed state."""


def object_path(kind: str, name: str = "", namespace: str = "") -> str:
    """Returns the URL path of an object, or of all objects of a kind."""
    prefix, plural, namespaced = _KINDS[kind]
    inner = f"/namespaces/{namespace}" if namespaced and namespace else ""
    return f"{prefix}{inner}/{plural}" + (f"/{name}" if name else "")


class KubeClient:
    """A client with the credentials of a kubeconfig, or with a bearer token."""

    def __init__(self, kubeconfig: Path, *, token: str = "") -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server: str = cluster["server"]
        self._token = token or user.get("token", "")
        self._context = _ssl_context(cluster)
        if not token and "client-certificate" in user:
            self._context.load_cert_chain(user["client-certificate"], user["client-key"])

    def request(
        self, method: str, path: str, body: object = None, *, content_type: str = "application/json", **query: str
    ) -> Any:
        """Sends a request and returns the response's JSON.

        Raises:
            ApiError: The status is 400 or above.
        """
        with self._open(method, path, body, content_type, query, timeout=30) as response:
            return json.loads(response.read() or b"null")

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        found: Object = self.request("GET", object_path(kind, name, namespace))
        return found

    def get_or_none(self, kind: str, name: str, namespace: str = "") -> Object | None:
        """Returns an object, or None if it does not exist."""
        try:
            return self.get(kind, name, namespace)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def list(self, kind: str, namespace: str = "", **query: str) -> list[Object]:
        """Returns the objects of a kind in a namespace; without one, in all namespaces."""
        items: list[Object] = self.request("GET", object_path(kind, namespace=namespace), **query)["items"]
        return items

    def create(self, body: Object, **query: str) -> Object:
        path = object_path(body["kind"], namespace=body["metadata"].get("namespace", ""))
        made: Object = self.request("POST", path, body, fieldManager=FIELD_MANAGER, **query)
        return made

    def apply(self, body: Object, **query: str) -> Object:
        """Applies an object server-side."""
        metadata = body["metadata"]
        path = object_path(body["kind"], metadata["name"], metadata.get("namespace", ""))
        kind = "application/apply-patch+yaml"
        done: Object = self.request(
            "PATCH", path, body, content_type=kind, fieldManager=FIELD_MANAGER, force="true", **query
        )
        return done

    def patch(self, kind: str, name: str, namespace: str, body: Object, *, subresource: str = "") -> Object:
        """Applies a JSON merge patch to an object, or to its ``subresource``."""
        path = object_path(kind, name, namespace) + (f"/{subresource}" if subresource else "")
        done: Object = self.request("PATCH", path, body, content_type="application/merge-patch+json")
        return done

    def delete(self, kind: str, name: str, namespace: str = "", *, grace_period: int | None = None) -> None:
        """Deletes an object without waiting. It need not exist."""
        query = {} if grace_period is None else {"gracePeriodSeconds": str(grace_period)}
        try:
            self.request("DELETE", object_path(kind, name, namespace), propagationPolicy="Background", **query)
        except ApiError as error:
            if error.code != 404:
                raise

    def wait_for(
        self,
        kind: str,
        name: str,
        namespace: str,
        predicate: Callable[[Object], object],
        *,
        timeout: float = 60,
        description: str = "",
    ) -> Object:
        """Waits until ``predicate`` is true for an object, and returns the object.

        Raises:
            WaitTimeout: It is still false after ``timeout`` seconds.
        """
        last: Object | None = None
        for last in self.watch(kind, name, namespace, timeout=timeout):
            if last is not None and predicate(last):
                return last
        status = json.dumps((last or {}).get("status"), indent=1)
        raise WaitTimeout(
            f"{kind} {namespace}/{name}: {description or 'condition'} not met within {timeout} s: {status}"
        )

    def wait_deleted(self, kind: str, name: str, namespace: str = "", *, timeout: float = 60) -> None:
        """Waits until an object no longer exists.

        Raises:
            WaitTimeout: It still exists after ``timeout`` seconds.
        """
        for found in self.watch(kind, name, namespace, timeout=timeout):
            if found is None:
                return
        metadata = (self.get_or_none(kind, name, namespace) or {}).get("metadata") or {}
        raise WaitTimeout(f"{kind} {namespace}/{name} still exists after {timeout} s: {metadata.get('finalizers')}")

    def watch(self, kind: str, name: str, namespace: str = "", *, timeout: float = 60) -> Iterator[Object | None]:
        """Yields an object now and after each change, None while it doesn't exist, for ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        path, query = object_path(kind, namespace=namespace), {"fieldSelector": f"metadata.name={name}"}
        while time.monotonic() < deadline:
            found = self.request("GET", path, **query)
            yield found["items"][0] if found["items"] else None
            for event in self._events(
                path, {**query, "resourceVersion": found["metadata"]["resourceVersion"]}, deadline
            ):
                if event["type"] == "ERROR":
                    break
                if event["type"] != "BOOKMARK":
                    yield None if event["type"] == "DELETED" else event["object"]

    def _events(self, path: str, query: dict[str, str], deadline: float) -> Iterator[Object]:
        seconds = max(1, round(deadline - time.monotonic()))
        query = {**query, "watch": "true", "timeoutSeconds": str(seconds)}
        with (
            contextlib.suppress(TimeoutError),
            self._open("GET", path, None, "application/json", query, timeout=seconds + 5) as response,
        ):
            for line in response:
                yield json.loads(line)

    def _open(
        self, method: str, path: str, body: object, content_type: str, query: dict[str, str], *, timeout: float
    ) -> HTTPResponse:
        url = self.server + path + (f"?{urllib.parse.urlencode(query)}" if query else "")
        request = urllib.request.Request(url, method=method)
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", content_type)
        try:
            response: HTTPResponse = urllib.request.urlopen(request, timeout=timeout, context=self._context)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode(errors="replace")
            with contextlib.suppress(ValueError, KeyError):
                text = json.loads(text)["message"]
            raise ApiError(error.code, text) from None
        return response


def _ssl_context(cluster: Object) -> ssl.SSLContext:
    if data := cluster.get("certificate-authority-data"):
        return ssl.create_default_context(cadata=base64.b64decode(data).decode())
    return ssl.create_default_context(cafile=cluster["certificate-authority"])
