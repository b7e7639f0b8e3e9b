"""Runs pods of a small probe program in a test's namespace."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from local_cluster.cluster import Cluster

IMAGE = "tests.tonnage.dev/probe:1"
PORT = 8080


@dataclass
class Namespace:
    """A namespace, deleted at the end of the ``with`` block without waiting."""

    cluster: Cluster
    name: str

    @classmethod
    def create(cls, cluster: Cluster, name: str) -> Namespace:
        """Creates the namespace and waits until pods can be created in it."""
        cluster.kubectl("create", "namespace", name)
        made = cls(cluster, name)
        made.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.kubectl("delete", "namespace", self.name, "--wait=false")

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl(f"--namespace={self.name}", *arguments, input=stdin)

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "--server-side", "-f", "-", stdin="---\n".join(map(json.dumps, objects)))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def run_server(self, name: str, *, mounts: Sequence[dict[str, Any]] = (), **spec: Any) -> str:
        """Creates an HTTP server's pod and a Service of the same name; returns the pod's UID when it is ready."""
        labels = {"app.kubernetes.io/name": name}
        port = {"port": 80, "targetPort": PORT}
        service = {"metadata": {"name": name}, "spec": {"selector": labels, "ports": [port]}}
        container_port = {"containerPort": PORT}
        probe = {"httpGet": {"path": "/ready", "port": PORT}, "periodSeconds": 1}
        container_fields = {"readinessProbe": probe, "ports": [container_port], "volumeMounts": [*mounts]}
        self.apply(
            {"apiVersion": "v1", "kind": "Service", **service},
            _pod(name, ["serve", f":{PORT}"], labels=labels, container=container_fields, **spec),
        )
        self.wait_ready(name)
        uid: str = self.get("pod", name)["metadata"]["uid"]
        return uid

    def wait_ready(self, name: str, *, timeout: int = 60) -> None:
        self.kubectl("wait", "--for=condition=Ready", f"pod/{name}", f"--timeout={timeout}s")

    def run_fetch(self, name: str, *urls: str) -> str:
        """Runs a pod that fetches URLs, and returns its log."""
        self.apply(_pod(name, ["get", *urls], restartPolicy="Never"))
        done = "--for=jsonpath={.status.containerStatuses[0].state.terminated}"
        self.kubectl("wait", done, f"pod/{name}", "--timeout=60s")
        return self.kubectl("logs", name)


def _pod(
    name: str,
    arguments: list[str],
    *,
    labels: dict[str, str] | None = None,
    container: dict[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    probe = {"name": "probe", "image": IMAGE, "args": arguments, **(container or {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"terminationGracePeriodSeconds": 2, "containers": [probe], **spec},
    }
