"""Builds pods for tests, and inspects running ones."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from e2e_support import processes
from operator_support.objects import get_condition
from support.waiting import eventually
from tonnage import contract
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Callable

    from e2e_support.e2e_cluster import E2ECluster

Object = dict[str, Any]

IDLE_SCRIPT = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit()); signal.pause()"
"""A program that sleeps until SIGTERM, which PID 1 of a container would ignore without a handler."""

SERVER_SCRIPT = """
import glob, json, os, signal, struct, sys

signal.signal(signal.SIGTERM, lambda *_: sys.exit())
path = os.environ.get("TONNAGE_MODEL_PATH", "")
for name in sorted(glob.glob(path + "/*.safetensors")) if path else []:
    with open(name, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    end = max(each["data_offsets"][1] for key, each in header.items() if key != "__metadata__")
    if os.path.getsize(name) != 8 + length + end:
        sys.exit(f"{name} is truncated")
    print(f"complete: {os.path.basename(name)}", flush=True)
print("serving", os.environ.get("TONNAGE_REVISION", ""), sorted(os.listdir(path)) if path else [], flush=True)
signal.pause()
"""
"""A server that exits with an error if a shard is truncated, and on SIGTERM."""

PYTHON = "/usr/bin/python3"

RESTRICTED_SECURITY_CONTEXT: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""A container's security context that the restricted Pod Security Standard accepts."""


def server_pod(
    name: str,
    namespace: str,
    image: str,
    *,
    annotations: dict[str, str],
    script: str = SERVER_SCRIPT,
    labels: dict[str, str] | None = None,
    **spec: Any,
) -> Object:
    """Returns a pod with one container, ``server``, that runs a Python script."""
    container = {
        "name": "server",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": [PYTHON, "-IBS", "-c", script],
        "resources": {"requests": {"cpu": "1m", "memory": "16Mi"}},
        "securityContext": RESTRICTED_SECURITY_CONTEXT,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations, "labels": labels or {}},
        "spec": {
            "containers": [container],
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 30,
            **spec,
        },
    }


@dataclass
class Pod:
    """A pod of a test. Its state is read from the API server each time."""

    e2e: E2ECluster
    name: str
    namespace: str

    def get(self) -> Object:
        return self.e2e.api.get("Pod", self.name, self.namespace)

    @property
    def uid(self) -> str:
        uid: str = self.get()["metadata"]["uid"]
        return uid

    def wait_ready(self, *, timeout: float = 90) -> Object:
        return self.wait_for(
            lambda body: get_condition(body, "Ready")[0] == "True", timeout=timeout, description="Ready"
        )

    def wait_for(self, predicate: Callable[[Object], object], *, timeout: float = 90, description: str = "") -> Object:
        """Waits until ``predicate`` is true for the pod."""
        return self.e2e.api.wait_for(
            "Pod", self.name, self.namespace, predicate, timeout=timeout, description=description
        )

    def container_status(self, name: str, body: Object | None = None) -> Object:
        """Returns a container's status; empty if it has none."""
        status = (body or self.get()).get("status") or {}
        both = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
        return next((each for each in both if each["name"] == name), {})

    def restart_count(self, container: str) -> int:
        count: int = self.container_status(container).get("restartCount", 0)
        return count

    def logs(self, container: str = "server", *, previous: bool = False) -> str:
        more = ["--previous"] if previous else []
        return self.e2e.kubectl("logs", "-n", self.namespace, self.name, "-c", container, *more)

    def wait_for_log(self, text: str) -> None:
        """Waits until the server has printed a text. Without a probe it is ready when it has started."""
        eventually(lambda: text in self.logs(), timeout=30)

    def last_report(self, container: str = names.LOADER_CONTAINER) -> contract.Report:
        """Returns the last report in a loader's log."""
        lines = [line for line in self.logs(container).splitlines() if line.startswith('{"schema_version"')]
        assert lines, f"the loader of {self.name} has not reported"
        return contract.decode_report(lines[-1])

    def exec(self, *command: str, container: str = "server") -> str:
        """Runs a command in a container and returns its output."""
        return self.e2e.kubectl("exec", "-n", self.namespace, self.name, "-c", container, "--", *command)

    def pids(self, container: str) -> list[int]:
        """Returns the PIDs of a container on the node, the oldest first."""
        return processes.container_pids(self.container_status(container).get("containerID", ""))

    def wait_for_pids(self, container: str, *, timeout: float = 30) -> list[int]:
        """Waits until a container runs, and returns its PIDs."""
        body = self.wait_for(
            lambda body: (self.container_status(container, body).get("state") or {}).get("running"),
            timeout=timeout,
            description=f"container {container} to run",
        )
        return processes.container_pids(self.container_status(container, body)["containerID"])

    def delete(self, *, timeout: float = 40) -> float:
        """Deletes the pod, waits until it no longer exists, and returns the seconds that this took."""
        started = time.monotonic()
        self.e2e.api.delete("Pod", self.name, self.namespace)
        self.e2e.api.wait_deleted("Pod", self.name, self.namespace, timeout=timeout)
        return time.monotonic() - started
