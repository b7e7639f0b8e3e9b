"""Nodes on which the Jobs' loaders and the peers run as processes, each node with a folder for its cache.

The API server, the scheduler and the Job controller are real. What a kubelet would do is done here: containers'
arguments and environment are taken as they are, with their mounts moved into folders, and the pods' status is set.
"""

from __future__ import annotations

import base64
import contextlib
import subprocess
import sys
import threading
import urllib.error
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from operator_support.background_thread import BackgroundThread
from support.tonnage_cli import command_environment
from tonnage import contract
from tonnage_operator.api import names

if TYPE_CHECKING:
    from pathlib import Path

    from operator_support.control_plane import ControlPlane

Pod = dict[str, Any]
STRATEGIC = "application/strategic-merge-patch+json"
_MOUNTS = ("/run/tonnage", "/dev/termination-log", "/var/run/secrets/tonnage.dev")


@dataclass
class Peer:
    """The server of one node, and the path of its pod."""

    address: str
    path: str
    process: subprocess.Popen[str]


@dataclass
class ProcessNodes(BackgroundThread):
    """Runs the pods of loaders, and a peer on each node that has one.

    Attributes:
        plane: The API server.
        folder: For the nodes' caches and the pods' files.
        port: The port of all peers, each at an address of its own.
        finished: The node and the report of each load that has ended, in this order.
    """

    plane: ControlPlane
    folder: Path
    port: int
    finished: list[tuple[str, contract.Report]] = field(default_factory=list)
    peers: dict[str, Peer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._loads: dict[str, threading.Thread] = {}
        self._processes: list[subprocess.Popen[str]] = []

    def run(self) -> None:
        while not self.stop_requested.wait(0.1):
            for pod in self.plane.request("GET", f"/api/v1/pods?labelSelector={names.ROLE}")["items"]:
                uid, role = pod["metadata"]["uid"], pod["metadata"]["labels"][names.ROLE]
                waiting = pod["spec"].get("nodeName") and pod.get("status", {}).get("phase") == "Pending"
                if waiting and role in {names.ROLE_RESOLVE, names.ROLE_LOAD} and uid not in self._loads:
                    self._loads[uid] = threading.Thread(target=self._run_pod, args=(pod,), daemon=True)
                    self._loads[uid].start()
        for process in (*self._processes, *(peer.process for peer in self.peers.values())):
            process.terminate()
            process.wait(30)
        for peer in self.peers.values():
            if peer.process.stderr:
                peer.process.stderr.close()
        for thread in self._loads.values():
            thread.join(30)

    def cache(self, node: str, medium: str = "memory") -> Path:
        """Returns the folder of a medium on a node."""
        path = self.folder / node / medium
        path.mkdir(parents=True, exist_ok=True)
        return path

    def start_peer(self, node: str, secret: dict[str, str]) -> Peer:
        """Starts the peer of a node with the Secret's data, as the chart's DaemonSet does, and creates its pod."""
        address = f"127.0.0.{10 + len(self.peers)}"
        secrets, run = self.folder / node / "secrets", self.folder / node / "run"
        for folder in (secrets, run):
            folder.mkdir(parents=True)
        for name, value in secret.items():
            (secrets / name).write_bytes(base64.b64decode(value))
        media = [f"--media={medium}={self.cache(node, medium)}" for medium in ("memory", "disk")]
        where = [f"--secrets={secrets}", f"--run-dir={run}", f"--port={self.port}", f"--address={address}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "tonnage", "peer", "serve", "--local-stores", *media, *where],
            env=command_environment(),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        for line in process.stderr:
            if line.startswith("serving"):
                break
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"peer-{node}", "labels": {names.ROLE: names.ROLE_PEER}},
            "spec": {"nodeName": node, "containers": [{"name": "peer", "image": "peer"}]},
        }
        self.plane.request("POST", "/api/v1/namespaces/tonnage-system/pods", body)
        path = f"/api/v1/namespaces/tonnage-system/pods/peer-{node}"
        ready = {"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": "True"}]}
        self.plane.request("PATCH", f"{path}/status", {"status": ready}, content_type=STRATEGIC)
        self.peers[node] = Peer(address, path, process)
        return self.peers[node]

    def _run_pod(self, pod: Pod) -> None:
        metadata, node = pod["metadata"], pod["spec"]["nodeName"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        local = self.folder / "pods" / metadata["name"]
        (container,) = pod["spec"]["containers"]
        moved = {mount: local / mount.strip("/").replace("/", "-") for mount in _MOUNTS}
        local.mkdir(parents=True)
        for mount, folder in moved.items():
            folder.touch() if mount.endswith("log") else folder.mkdir()
        (moved[_MOUNTS[2]] / "token").write_text(self._token(metadata))
        if "--cache" in container["args"]:
            key = metadata["annotations"][names.CACHE_KEY]
            entry = self.cache(node, metadata["annotations"][names.MEDIUM].lower()) / key
            entry.mkdir(parents=True, exist_ok=True)
            moved["/cache"] = entry.parent
        process = subprocess.Popen(
            [sys.executable, "-m", "tonnage", *(_moved(word, moved) for word in container["args"])],
            env=command_environment(self._environment(pod, container, moved)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        self._set_state(path, "Running", {"running": {}})
        process.communicate()
        message = moved["/dev/termination-log"].read_text()
        if metadata["labels"][names.ROLE] == names.ROLE_LOAD and message:
            self.finished.append((node, contract.decode_report(message)))
        reason = "Error" if process.returncode else "Completed"
        state = {"terminated": {"exitCode": process.returncode, "reason": reason, "message": message}}
        self._set_state(path, "Failed" if process.returncode else "Succeeded", state)

    def _token(self, metadata: dict[str, Any]) -> str:
        bound = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
        spec = {"audiences": [names.TOKEN_AUDIENCE], "boundObjectRef": bound, "expirationSeconds": 3600}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/default/token"
        return str(self.plane.request("POST", path, body)["status"]["token"])

    def _environment(self, pod: Pod, container: dict[str, Any], moved: dict[str, Path]) -> dict[str, str]:
        fields = {"spec.nodeName": pod["spec"]["nodeName"], "metadata.name": pod["metadata"]["name"]}
        found = {}
        for each in container.get("env", ()):
            source = each.get("valueFrom", {})
            if "fieldRef" in source:
                found[each["name"]] = fields[source["fieldRef"]["fieldPath"]]
            elif "secretKeyRef" in source:
                reference = source["secretKeyRef"]
                path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/secrets/{reference['name']}"
                data = self.plane.request("GET", path)["data"]
                if reference["key"] in data:
                    found[each["name"]] = base64.b64decode(data[reference["key"]]).decode()
            else:
                found[each["name"]] = _moved(each["value"].replace("$$", "$"), moved)
        return found

    def _set_state(self, path: str, phase: str, state: dict[str, Any]) -> None:
        status = {
            "name": names.LOADER_CONTAINER,
            "image": "loader",
            "imageID": "loader",
            "ready": "running" in state,
            "started": "running" in state,
            "restartCount": 0,
            "state": state,
        }
        with contextlib.suppress(urllib.error.HTTPError):
            body = {"status": {"phase": phase, "containerStatuses": [status]}}
            self.plane.request("PATCH", f"{path}/status", body, content_type=STRATEGIC)


def _moved(text: str, folders: dict[str, Path]) -> str:
    for mount, folder in folders.items():
        text = text.replace(mount, str(folder))
    return text
