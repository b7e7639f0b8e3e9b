"""Pods as tests want them, and what can be said about one that runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster_support import processes
from cluster_support.api import condition
from tonnage import contract
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cluster_support.site import Site

Object = dict[str, Any]

IDLE = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit()); signal.pause()"
"""A program that does nothing, and leaves on SIGTERM: the first process of a container ignores it unless told."""

SERVER = """
import glob, json, os, signal, struct, sys

signal.signal(signal.SIGTERM, lambda *_: sys.exit())
path = os.environ.get("TONNAGE_MODEL_PATH", "")
for name in sorted(glob.glob(path + "/*.safetensors")) if path else []:
    with open(name, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    end = max(each["data_offsets"][1] for key, each in header.items() if key != "__metadata__")
    if os.path.getsize(name) != 8 + length + end:
        sys.exit(f"{name} is not whole")
    print(f"whole: {os.path.basename(name)}", flush=True)
print("serving", os.environ.get("TONNAGE_REVISION", ""), sorted(os.listdir(path)) if path else [], flush=True)
signal.pause()
"""
"""A server that refuses to start on a model that isn't whole, and leaves on SIGTERM."""

PYTHON = "/usr/bin/python3"

TIGHT: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""What the restricted profile asks of a container."""


def server_pod(
    name: str,
    namespace: str,
    image: str,
    *,
    notes: dict[str, str],
    script: str = SERVER,
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
        "securityContext": TIGHT,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "annotations": notes, "labels": labels or {}},
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
    """One pod of a test. What it is now is asked for each time."""

    site: Site
    name: str
    namespace: str

    def body(self) -> Object:
        """Returns it as the API has it."""
        return self.site.api.get("Pod", self.name, self.namespace)

    @property
    def uid(self) -> str:
        """Returns its uid."""
        uid: str = self.body()["metadata"]["uid"]
        return uid

    def until_ready(self, *, within: float = 90) -> Object:
        """Waits until all of its containers are ready."""
        return self.until(lambda body: condition(body, "Ready")[0] == "True", within=within, what="Ready")

    def until(self, holds: Callable[[Object], object], *, within: float = 90, what: str = "") -> Object:
        """Waits for something about it."""
        return self.site.api.until("Pod", self.name, self.namespace, holds, within=within, what=what)

    def container(self, name: str, body: Object | None = None) -> Object:
        """Returns a container's status; empty while there is none."""
        status = (body or self.body()).get("status") or {}
        both = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
        return next((each for each in both if each["name"] == name), {})

    def restarts(self, container: str) -> int:
        """Returns how often a container was started again."""
        count: int = self.container(container).get("restartCount", 0)
        return count

    def logs(self, container: str = "server", *, previous: bool = False) -> str:
        """Returns what a container said."""
        more = ["--previous"] if previous else []
        return self.site.kubectl("logs", "-n", self.namespace, self.name, "-c", container, *more)

    def report(self, container: str = names.LOADER_CONTAINER) -> contract.Report:
        """Returns the last report of a loader, from its log."""
        lines = [line for line in self.logs(container).splitlines() if line.startswith('{"schema_version"')]
        assert lines, f"the loader of {self.name} has not reported"
        return contract.decode_report(lines[-1])

    def run(self, *command: str, container: str = "server") -> str:
        """Runs a command in a container and returns its output."""
        return self.site.kubectl("exec", "-n", self.namespace, self.name, "-c", container, "--", *command)

    def pids(self, container: str) -> list[int]:
        """Returns the processes of a container on the node, its first one first."""
        return processes.pids_of(self.container(container).get("containerID", ""))

    def await_pids(self, container: str, *, within: float = 30) -> list[int]:
        """Waits until a container has processes, and returns them."""
        body = self.until(
            lambda body: (self.container(container, body).get("state") or {}).get("running"),
            within=within,
            what=f"container {container} to run",
        )
        return processes.pids_of(self.container(container, body)["containerID"])

    def delete(self, *, within: float = 40) -> float:
        """Deletes it and returns the seconds until it is gone."""
        began = time.monotonic()
        self.site.api.delete("Pod", self.name, self.namespace)
        self.site.api.gone("Pod", self.name, self.namespace, within=within)
        return time.monotonic() - began

    def files(self, volume: str) -> Path:
        """Returns where an EmptyDir of it lies on the node."""
        volumes = self.site.root / "var/lib/kubelet/pods" / self.uid / "volumes"
        return volumes / "kubernetes.io~empty-dir" / volume

    def startup(self) -> Startup:
        """Returns how long its one loader and its whole init phase took; it must be ready."""
        loader, server = self.pids(names.LOADER_CONTAINER)[0], self.pids("server")[0]
        began = processes.started_at(loader)
        ready = processes.modified_at(self.files("tonnage-run") / "ready")
        return Startup(loader=ready - began, init=processes.started_at(server) - began)


@dataclass(frozen=True)
class Startup:
    """Seconds from the start of the loader's process, Python's own start included.

    ``loader`` is until the entry was ready to be read, ``init`` until the serving container's process started.
    """

    loader: float
    init: float
