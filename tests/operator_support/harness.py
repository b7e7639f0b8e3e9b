"""Test harness: nodes, ``ModelWeights`` and controllers on a real control plane."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Self

import yaml
from kubernetes.aio.client import Configuration

from operator_support import controllers, objects
from operator_support.background_thread import AppThread
from operator_support.control_plane import PYTHONPATH
from operator_support.injection import resolved_modelweights
from operator_support.metrics import count
from support.waiting import eventually
from tonnage_operator.api import names
from tonnage_operator.config import ServerOptions
from tonnage_operator.controller.app import ControllerApp
from tonnage_operator.domain.admission.pod_groups import build_group_revision, find_group
from tonnage_operator.domain.installation import Installation
from tonnage_operator.gate.app import GateApp
from tonnage_operator.kube.credentials import ClientConfig, from_kubeconfig

if TYPE_CHECKING:
    from pathlib import Path

    from operator_support.control_plane import ControlPlane

GROUP_PATH = "/apis/tonnage.dev/v1alpha1"


def make_installation(**changes: Any) -> Installation:
    """Returns an installation with short retry delays."""
    defaults = {
        "namespace": "tonnage-system",
        "signing": objects.KEYS,
        "media": {"Memory": {"hostPath": "/dev/shm/tonnage"}, "Disk": {"hostPath": "/var/lib/tonnage"}},
        "sharing": "Cluster",
        "loader": {"image": "tonnage-loader:1", "memoryOverhead": "16Mi", "resources": {"requests": {"cpu": "1m"}}},
        "retryBase": 0.5,
        "retryCap": 2.0,
    }
    return Installation.model_validate({**defaults, **changes})


WITH_PEERS: dict[str, Any] = {
    "peers": {"secret": "tonnage-peers"},
    "reports": {"url": "https://tonnage-controller.tonnage-system.svc:8443/v1/reports"},
}
"""What an installation has beside ``make_installation`` if nodes serve entries to each other."""


def write_installation(folder: Path, **changes: Any) -> Path:
    """Writes the file of ``make_installation`` with the signing key beside it, and returns its path."""
    (folder / "current").write_bytes(objects.KEYS.keys[0])
    path = folder / "installation.yaml"
    config = make_installation(signingFolder=".", **changes).model_dump(mode="json", by_alias=True)
    path.write_text(yaml.safe_dump(config))
    return path


class OperatorHarness:
    """The namespace and the nodes of a test."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane = plane
        self.namespace = namespace

    def add_nodes(
        self,
        *short_names: str,
        labels: dict[str, str] | None = None,
        boot_id: str = "boot-1",
        taints: list[dict[str, str]] | None = None,
    ) -> list[str]:
        """Creates nodes and returns their names: prefixed with the namespace, so that tests don't share them."""
        made = []
        for short in short_names:
            name = f"{self.namespace}-{short}"
            body = {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": name,
                    "labels": {names.HOSTNAME_LABEL: name, "test-namespace": self.namespace, **(labels or {})},
                },
                "spec": {"taints": taints or []},
            }
            self.plane.request("POST", "/api/v1/nodes", body)
            # Admission taints each new node; a kubelet would remove the taint.
            self.patch_node(name, {"spec": {"taints": taints}})
            self.set_node_status(name, boot_id=boot_id)
            made.append(name)
        return made

    def patch_node(self, name: str, patch: dict[str, Any]) -> None:
        self.plane.request("PATCH", f"/api/v1/nodes/{name}", patch, content_type="application/merge-patch+json")

    def set_node_status(self, name: str, *, boot_id: str = "boot-1", ready: bool = True) -> None:
        """Sets the status that a kubelet would set."""
        resources = {"cpu": "64", "memory": "512Gi", "pods": "500"}
        status = {
            "capacity": resources,
            "allocatable": resources,
            "nodeInfo": {"bootID": boot_id},
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True" if ready else "False",
                    "reason": "Test",
                    "message": "set by the test",
                }
            ],
        }
        self.plane.request(
            "PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, content_type="application/merge-patch+json"
        )

    def delete_node(self, name: str) -> None:
        self.plane.request("DELETE", f"/api/v1/nodes/{name}")

    def create(self, spec: dict[str, Any] | None = None, *, name: str = "llama") -> dict[str, Any]:
        """Creates a ``ModelWeights`` that prewarms this namespace's nodes; ``spec`` is merged into the default."""
        placement = {"placement": {"prewarm": "AllMatching", "nodeSelector": {"test-namespace": self.namespace}}}
        # A separate bucket, so that entries are not shared with other tests.
        source = objects.deep_merge(objects.SOURCE, {"s3": {"bucket": self.namespace}})
        merged_spec = objects.deep_merge(objects.deep_merge({"source": source}, placement), spec or {})
        body = {
            "apiVersion": "tonnage.dev/v1alpha1",
            "kind": "ModelWeights",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": merged_spec,
        }
        made: dict[str, Any] = self.plane.request(
            "POST", f"{GROUP_PATH}/namespaces/{self.namespace}/modelweights", body
        )
        return made

    def object_path(self, name: str = "llama") -> str:
        return f"{GROUP_PATH}/namespaces/{self.namespace}/modelweights/{name}"

    def get(self, name: str = "llama") -> dict[str, Any]:
        body: dict[str, Any] = self.plane.request("GET", self.object_path(name))
        return body

    def patch(self, spec: dict[str, Any], name: str = "llama") -> None:
        self.plane.request("PATCH", self.object_path(name), {"spec": spec}, content_type="application/merge-patch+json")

    def delete(self, name: str = "llama") -> None:
        """Deletes an object without waiting."""
        self.plane.request("DELETE", self.object_path(name))

    def group_revisions(self) -> list[dict[str, Any]]:
        """Returns the ``GroupRevision`` objects of the namespace."""
        return self._list("grouprevisions")

    def keep_group_revision(self) -> None:
        """Creates a ``GroupRevision`` as the webhook does for a RayCluster."""
        group, weights = find_group(controllers.ray_pod("ray", "uid", "head")), resolved_modelweights()
        assert group is not None
        assert weights.status.resolved is not None
        body = build_group_revision(group, "ray", self.namespace, weights, weights.status.resolved)
        self.plane.request("POST", f"{GROUP_PATH}/namespaces/{self.namespace}/grouprevisions", body)

    def is_gone(self, name: str = "llama") -> bool:
        return not any(item["metadata"]["name"] == name for item in self._list("modelweights"))

    def expire_check_interval(self, name: str = "llama") -> None:
        """Sets the time of the last check back, so that the source is due to be resolved again."""
        body = self.get(name)
        body["status"]["lastCheckedTime"] = "2020-01-01T00:00:00Z"
        self.plane.request("PUT", self.object_path(name) + "/status", body)

    def cleanup(self) -> None:
        """Removes objects and nodes, so that controllers of later tests don't reconcile them."""
        for item in self._list("modelweights"):
            name = item["metadata"]["name"]
            with contextlib.suppress(urllib.error.HTTPError):
                self.delete(name)
                no_finalizers = {"metadata": {"finalizers": None}}
                self.plane.request(
                    "PATCH", self.object_path(name), no_finalizers, content_type="application/merge-patch+json"
                )
        selector = f"labelSelector=test-namespace%3D{self.namespace}"
        self.plane.request("DELETE", f"/api/v1/nodes?{selector}")

    def _list(self, plural: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.plane.request("GET", f"{GROUP_PATH}/namespaces/{self.namespace}/{plural}")[
            "items"
        ]
        return items

    def status(self, name: str = "llama") -> dict[str, Any]:
        return self.get(name).get("status") or {}

    def condition(self, kind: str, name: str = "llama") -> tuple[str, str]:
        """Returns (status, reason) of a condition; empty strings if it is not set."""
        return objects.get_condition(self.get(name), kind)[:2]

    def wait_for_condition(
        self, kind: str, status: str = "True", reason: str = "", *, name: str = "llama", timeout: float = 25
    ) -> None:
        """Waits until a condition has this status and, unless empty, this reason."""

        def holds() -> bool:
            found = self.condition(kind, name)
            return found[0] == status and (not reason or found[1] == reason)

        try:
            eventually(holds, timeout=timeout)
        except AssertionError:
            raise AssertionError(
                f"{kind} is not {status} {reason}: {json.dumps(self.status(name), indent=1)}"
            ) from None

    def nodecache_status(self, node: str) -> dict[str, Any]:
        """Returns a NodeCache's status; empty if it does not exist."""
        try:
            return self.plane.request("GET", f"{GROUP_PATH}/nodecaches/{node}").get("status") or {}
        except urllib.error.HTTPError as error:
            with error:
                return {}

    def entry_states(self, node: str) -> dict[str, str]:
        """Returns the state of each entry of a node by name."""
        return {entry["name"]: entry["state"] for entry in self.nodecache_status(node).get("entries") or ()}

    def jobs(self, role: str = "") -> list[dict[str, Any]]:
        """Returns the namespace's Jobs, all or those of a role."""
        selector = f"?labelSelector={names.ROLE}%3D{role}" if role else ""
        items: list[dict[str, Any]] = self.plane.request(
            "GET", f"/apis/batch/v1/namespaces/{self.namespace}/jobs{selector}"
        )["items"]
        return items

    def loading_pod_name(self, node: str) -> str:
        """Returns the name of the running load pod of a node; empty if there is none."""
        selector = f"labelSelector={names.ROLE}%3Dload&fieldSelector=spec.nodeName%3D{node}"
        items = self.plane.request("GET", f"/api/v1/namespaces/{self.namespace}/pods?{selector}")["items"]
        running = [each["metadata"]["name"] for each in items if each.get("status", {}).get("phase") == "Running"]
        return running[0] if running else ""

    def event_reasons(self) -> list[str]:
        """Returns the reasons of all events about ``ModelWeights`` of the namespace."""
        items = self.plane.request("GET", f"/api/v1/namespaces/{self.namespace}/events")["items"]
        return [each["reason"] for each in items if each["involvedObject"]["kind"] == "ModelWeights"]


class ControllerThread(AppThread[ControllerApp]):
    """A controller in a thread. ``start`` doesn't wait until it is ready, a ``with`` block does.

    Args:
        client_config: The API server and the controller's credentials.
        installation: The settings.
        report_port: Where loaders send reports; 0: any free port.
    """

    def __init__(self, client_config: ClientConfig, installation: Installation, *, report_port: int = 0) -> None:
        super().__init__()
        self._client_config = client_config
        self._installation = installation
        self._report_port = report_port

    def create_app(self) -> ControllerApp:
        return ControllerApp(self._client_config, self._installation, ServerOptions("127.0.0.1", self._report_port, 0))

    def reconcile_all(self) -> None:
        """Enqueues all objects and nodes, and waits until the queues are idle."""

        def enqueue_all() -> None:
            for record in self.app.state.weights:
                self.app.weights_queue.add(record.uid)
            for node in self.app.state.nodes:
                self.app.node_queue.add(node.name)

        self.call_in_loop(enqueue_all)
        eventually(lambda: self.call_in_loop(lambda: self.app.idle))

    def has_jobs_in(self, namespace: str) -> bool:
        """Returns whether the controller has a Job of an object of the namespace in its state."""
        prefix = f"{namespace}/"
        return self.call_in_loop(lambda: any(job.model_ref.startswith(prefix) for job in self.app.state.jobs))

    def is_deleting(self, namespace: str) -> bool:
        """Returns whether the controller knows that an object of the namespace is being deleted."""
        weights = self.call_in_loop(lambda: list(self.app.state.weights))
        return any(record.namespace == namespace and record.deleting for record in weights)

    def knows_job(self, uid: str) -> bool:
        """Returns whether the controller has a Job in its state."""
        return self.call_in_loop(lambda: self.app.state.jobs.get(uid) is not None)

    def entry_states(self, node: str) -> dict[str, str]:
        """Returns the state of each entry of a node by name, as the controller knows it."""
        cache = self.call_in_loop(lambda: self.app.state.node_cache(node))
        return {each.name: each.state.value for each in (cache.status.entries if cache else None) or ()}

    def count_writes(self) -> int:
        """Returns the number of write requests that the controller has sent."""
        return self.count_requests("create", "apply", "update", "patch", "delete")

    def count_requests(self, *verbs: str, resource: str = "") -> int:
        """Returns the number of requests that the controller has sent: of these verbs, about one kind or all."""
        about = {"resource": resource} if resource else {}
        return sum(count(self.app.metrics.requests, verb=verb, **about) for verb in verbs)


class GateThread(AppThread[GateApp]):
    """A gate in a thread. The ``with`` block begins when it has all lists."""

    def __init__(self, client_config: ClientConfig, installation: Installation) -> None:
        super().__init__()
        self._client_config = client_config
        self._installation = installation

    def create_app(self) -> GateApp:
        return GateApp(self._client_config, self._installation, ServerOptions("127.0.0.1", 0, 0))


class ControllerProcess:
    """A controller as a subprocess, which can be killed."""

    def __init__(
        self,
        plane: ControlPlane,
        folder: Path,
        *,
        server: str = "",
        health_port: int = 0,
        report_port: int = 0,
        certificate: tuple[Path, Path] | None = None,
        **installation_values: Any,
    ) -> None:
        self._folder = folder
        self._tls = [f"--tls-cert={certificate[0]}", f"--tls-key={certificate[1]}"] if certificate else []
        self.health_port = health_port
        self.report_port = report_port
        self._kubeconfig = folder / "kubeconfig"
        kubeconfig = json.loads(plane.kubeconfig.read_text())
        if server:
            kubeconfig["clusters"][0]["cluster"] = {"server": server}
        self._kubeconfig.write_text(json.dumps(kubeconfig))
        write_installation(folder, **installation_values)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def arguments(self) -> list[str]:
        """The arguments of ``tonnage-operator``."""
        files = ["--config", str(self._folder / "installation.yaml"), "--kubeconfig", str(self._kubeconfig)]
        ports = ["--port", str(self.report_port), "--health-port", str(self.health_port)]
        return ["controller", *files, "--host", "127.0.0.1", *ports, *self._tls]

    @property
    def log(self) -> Path:
        """The output of all its processes."""
        return self._folder / "controller.log"

    def start(self) -> None:
        command = [sys.executable, "-m", "tonnage_operator", *self.arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": PYTHONPATH}, start_new_session=True
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """Kills the process group (SIGKILL), as a crash of the node would."""
        if self.process and self.running:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def admin_client_config(plane: ControlPlane) -> ClientConfig:
    """Returns the administrator's credentials."""
    return asyncio.run(from_kubeconfig(str(plane.kubeconfig)))


def static_client_config(server: str, *, ca_file: Path | None = None, token: str = "") -> ClientConfig:
    """Returns credentials that never change."""
    configuration = Configuration(host=server, ssl_ca_cert=str(ca_file) if ca_file else None)
    if token:
        configuration.api_key["BearerToken"] = f"Bearer {token}"
    return ClientConfig(configuration)
