"""A real Kubernetes control plane on loopback: etcd, API server, controller manager, scheduler. No node, no root.

The programs are built once by ``hack/kubernetes/build.sh``, or come from ``KUBEBUILDER_ASSETS``. Their arguments are in
``local_cluster.control_plane``.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import ssl
import subprocess
import threading
import time
import urllib.error
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trustme
import yaml

from local_cluster import credentials, http_probe, preflight, programs
from local_cluster.control_plane import (
    ENVIRONMENT,
    ControlPlaneSettings,
    Ports,
    is_api_server_ready,
    program_arguments,
)
from local_cluster.errors import MissingRequirements
from local_cluster.process import Process
from support.ports import free_ports
from support.repository import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PYTHONPATH = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "loader")])
"""For processes that run ``python -m tonnage_operator`` from the source tree."""
OPERATOR_NAMESPACE = "tonnage-system"
WEBHOOK_CLIENT = "kube-apiserver"
"""Common name of the certificate that the API server presents to webhooks."""

_ACCOUNT_TIMEOUT = 30.0
_NO_ACCOUNT = b"error looking up service account"
_AUDIT_POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  userGroups: ["system:serviceaccounts:tonnage-system"]
- level: None
"""
"""Logs only requests of service accounts in the operator's namespace: tests compare them with their roles."""


class DependencyUnavailable(Exception):
    """A program that the tests need is missing; the message names it."""


def find_programs() -> dict[str, Path]:
    """Returns the path of each program, after building missing ones."""
    try:
        return {**programs.find_or_build(programs.CONTROL_PLANE), "etcd": preflight.find_or_install("etcd")}
    except MissingRequirements as error:
        raise DependencyUnavailable(str(error)) from error


def skip_or_fail(missing: str) -> NoReturn:
    """Skips the test (in CI: fails it) with the name of what is missing."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"No control plane: {missing}")
    pytest.skip(f"No control plane: {missing}")


def _is_healthy(port: int) -> bool:
    """Returns whether a component's /healthz returns 200; its certificate is one that it made for itself."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http_probe.ok(f"https://127.0.0.1:{port}/healthz", {}, context)


@dataclass
class ControlPlane:
    """A control plane. ``token`` is that of its administrator, once it is started."""

    folder: Path
    programs: dict[str, Path]
    token: str = ""
    webhook_clients: trustme.CA = field(default_factory=trustme.CA)
    """The CA of the certificate that the API server presents to webhooks."""
    _processes: list[Process] = field(default_factory=list)
    _thread_local: threading.local = field(default_factory=threading.local)
    _connections: list[http.client.HTTPSConnection] = field(default_factory=list)

    @cached_property
    def settings(self) -> ControlPlaneSettings:
        components = ("kube-controller-manager", "kube-scheduler")
        # Nodes of these tests have no kubelet that renews their leases.
        controllers_flag = (
            "--controllers=*,-node-lifecycle-controller,-node-ipam-controller,-cloud-node-lifecycle-controller"
        )
        return ControlPlaneSettings(
            folder=self.folder,
            address="127.0.0.1",
            service_range="10.0.0.0/24",
            ports=Ports(*free_ports(5)),
            authorization="RBAC",
            kubeconfigs=dict.fromkeys(components, self.kubeconfig),
            audit_policy=self.folder / "audit-policy.yaml",
            extra_args={
                "kube-apiserver": [
                    "--feature-gates=WatchList=false",
                    "--advertise-address=10.255.255.254",
                    "--endpoint-reconciler-type=none",
                    f"--admission-control-config-file={self.folder / 'admission.yaml'}",
                ],
                "kube-controller-manager": [controllers_flag],
            },
        )

    @property
    def url(self) -> str:
        """The API server's URL."""
        return self.settings.url

    @property
    def ca_file(self) -> Path:
        """The CA certificate of the API server."""
        return self.settings.ca_file

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.folder / "admin.kubeconfig"

    def start(self) -> None:
        """Starts all programs and waits until they are ready.

        Raises:
            StartFailed: One exited, for example because its port is taken; the message ends with its log.
        """
        settings = self.settings
        (self.folder / "audit-policy.yaml").write_text(_AUDIT_POLICY)
        self._write_admission_configuration()
        credentials.make_service_account_key(settings.service_account_key)
        tokens = credentials.make_tokens({"admin": ("admin", ("system:masters",))}, settings.tokens_file)
        self.token = tokens["admin"]
        credentials.write_kubeconfig(self.kubeconfig, url=self.url, ca_file=self.ca_file, token=self.token)
        for name, arguments in program_arguments(settings).items():
            log = self.folder / f"{name}.log"
            process = Process(name, [self.programs[name], *arguments], log, environment=ENVIRONMENT)
            self._processes.append(process)
            process.start()
            if name == "kube-apiserver":
                process.readiness_probe = partial(is_api_server_ready, settings, self.token)
                process.wait_until_ready()
        ports = {
            "kube-controller-manager": settings.ports.controller_manager,
            "kube-scheduler": settings.ports.scheduler,
        }
        for process in self._processes:
            if port := ports.get(process.name):
                process.readiness_probe = partial(_is_healthy, port)
                process.wait_until_ready()

    def _write_admission_configuration(self) -> None:
        """Gives the API server a certificate for webhooks, as docs/guides/helm.md shows."""
        issued = self.webhook_clients.issue_cert("api-server.example.com", common_name=WEBHOOK_CLIENT)
        issued.private_key_pem.write_to_path(str(self.folder / "webhook-client.key"))
        issued.cert_chain_pems[0].write_to_path(str(self.folder / "webhook-client.crt"))
        text = (ROOT / "docs" / "guides" / "helm.md").read_text()
        admission, kubeconfig = re.findall(r"```yaml\n(.*?)```", text.partition("## Client certificate")[2], re.DOTALL)[
            :2
        ]
        admission = admission.replace("/etc/kubernetes/webhook-clients.yaml", str(self.folder / "webhook-clients.yaml"))
        kubeconfig = kubeconfig.replace("tonnage-webhook.tonnage-system.svc", "'*'")  # these webhooks have no Service
        kubeconfig = kubeconfig.replace("/etc/kubernetes/pki/", f"{self.folder}/")
        (self.folder / "admission.yaml").write_text(admission)
        (self.folder / "webhook-clients.yaml").write_text(kubeconfig)

    def stop(self) -> None:
        """Stops all programs in reverse order."""
        for connection in self._connections:
            connection.close()
        for process in reversed(self._processes):
            process.kill(signal.SIGTERM)
        for process in reversed(self._processes):
            process.stop()
        self._processes.clear()

    def pids(self) -> dict[str, int]:
        """Returns the PID of each program by name."""
        return {process.name: process.pid for process in self._processes}

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs kubectl with the administrator's kubeconfig."""
        return subprocess.run(
            [
                self.programs["kubectl"],
                f"--kubeconfig={self.kubeconfig}",
                f"--cache-dir={self.folder / 'cache'}",
                *arguments,
            ],
            input=stdin,
            check=check,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def install_crds(self, folder: Path) -> None:
        """Creates the CRDs and waits until the API server serves them."""
        for path in sorted(folder.iterdir()):
            crd = yaml.safe_load(path.read_text())
            self.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        deadline = time.monotonic() + 30
        for plural in ("modelweights", "nodecaches", "grouprevisions"):
            while True:
                try:
                    self.request("GET", f"/apis/tonnage.dev/v1alpha1/{plural}")
                    break
                except urllib.error.HTTPError as error:
                    error.close()
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)

    def create_token(self, account: str) -> str:
        """Returns a token of a service account of the operator's namespace."""
        return self.kubectl("create", "token", account, "-n", OPERATOR_NAMESPACE).stdout.strip()

    def write_account_kubeconfig(self, path: Path, account: str) -> None:
        """Writes a kubeconfig of a service account of the operator's namespace."""
        credentials.write_kubeconfig(path, url=self.url, ca_file=self.ca_file, token=self.create_token(account))

    def audit_events(self, account: str) -> list[dict[str, Any]]:
        """Returns the audit events of a service account of the operator's namespace."""
        lines = self.settings.audit_log.read_text().splitlines()
        wanted = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{account}"
        return [event for event in map(json.loads, lines) if event["user"]["username"] == wanted]

    def request(
        self, method: str, path: str, body: Any = None, *, content_type: str = "application/json", user: str = ""
    ) -> Any:
        """Sends a request and returns the response's JSON.

        A pod that is refused because its namespace has no ServiceAccount yet is sent again: the controller manager,
        which creates it, may just be starting.

        Args:
            method: The method.
            path: Path and query.
            body: What is sent as JSON; None: nothing.
            content_type: The type of the body.
            user: Who asks, as for kubectl's ``--as``; empty: the administrator.

        Raises:
            urllib.error.HTTPError: The status is 400 or above; the body is in ``fp``.
        """
        headers = {"Authorization": f"Bearer {self.token}"}
        if user:
            headers["Impersonate-User"] = user
        data = None
        if body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), content_type
        deadline = time.monotonic() + _ACCOUNT_TIMEOUT
        while True:
            response, text = self._exchange(method, path, data, headers)
            if response.status < 400:
                return json.loads(text or b"null")
            if response.status != 403 or _NO_ACCOUNT not in text or time.monotonic() > deadline:
                reason = f"{response.reason}: {text[:1000].decode(errors='replace')}"
                raise urllib.error.HTTPError(
                    self.url + path, response.status, reason, response.headers, io.BytesIO(text)
                )
            time.sleep(0.05)

    def _exchange(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Returns the response and its body; a new connection replaces an idle one that the server has closed."""
        try:
            return self._send(self._connection(), method, path, data, headers)
        except (http.client.BadStatusLine, ConnectionError, ssl.SSLEOFError):
            return self._send(self._connection(fresh=True), method, path, data, headers)

    def refusal(self, method: str, path: str, body: Any = None, **more: str) -> str:
        """Sends a request as ``request`` does; returns the message with which it is refused, empty after a success."""
        try:
            self.request(method, path, body, **more)
        except urllib.error.HTTPError as error:
            with error:
                message: str = json.loads(error.read())["message"]
                return message
        return ""

    @staticmethod
    def _send(
        connection: http.client.HTTPSConnection, method: str, path: str, data: bytes | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection.request(method, path, body=data, headers=headers)
        response = connection.getresponse()
        return response, response.read()

    def _connection(self, *, fresh: bool = False) -> http.client.HTTPSConnection:
        """Returns this thread's connection. It is kept, since a TLS handshake costs more than a request."""
        connection: http.client.HTTPSConnection | None = getattr(self._thread_local, "connection", None)
        if connection is None or fresh:
            context = ssl.create_default_context(cafile=str(self.ca_file))
            address = self.url.removeprefix("https://")
            connection = self._thread_local.connection = http.client.HTTPSConnection(
                address, timeout=30, context=context
            )
            self._connections.append(connection)
        return connection
