"""Arguments of etcd, API server, controller manager and scheduler, and the API server's readiness.

Used by the local cluster, and by tests that need only an API server on loopback.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from local_cluster import http_probe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

ENVIRONMENT = {"GOGC": "400"}
"""Go collects garbage when the heap is five times as large, not twice: 250 MB more, and a fifth less CPU time."""
_ISSUER = "https://kubernetes.default.svc"


@dataclass(frozen=True)
class Ports:
    """The control plane's ports. All except ``api`` are on loopback."""

    etcd: int = 2379
    etcd_peer: int = 2380
    api: int = 6443
    controller_manager: int = 10257
    scheduler: int = 10259


@dataclass(frozen=True)
class ControlPlaneSettings:
    """The settings of a control plane.

    ``folder`` holds all of its files. ``kubeconfigs`` and ``extra_args`` (additional arguments) are by program.
    ``audit_policy`` is the API server's policy file for ``audit_log``; None: no audit log.
    """

    folder: Path
    address: str
    service_range: str
    ports: Ports
    authorization: str
    kubeconfigs: Mapping[str, Path]
    audit_policy: Path | None = None
    extra_args: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The API server's URL."""
        return f"https://{self.address}:{self.ports.api}"

    @property
    def ca_file(self) -> Path:
        """The CA of the API server's certificate: the certificate itself, which is self-signed."""
        return self.folder / "serving" / "apiserver.crt"

    @property
    def tokens_file(self) -> Path:
        """Static bearer tokens, in the API server's format."""
        return self.folder / "tokens.csv"

    @property
    def service_account_key(self) -> Path:
        """The key that signs service-account tokens."""
        return self.folder / "service-account.key"

    @property
    def audit_log(self) -> Path:
        """The audit log, one JSON object per line."""
        return self.folder / "audit.log"


def program_arguments(settings: ControlPlaneSettings) -> dict[str, list[str]]:
    """Returns the arguments of each program, by its name."""
    made = {
        "etcd": _etcd(settings),
        "kube-apiserver": _api_server(settings),
        "kube-controller-manager": _controller_manager(settings),
        "kube-scheduler": _scheduler(settings),
    }
    return {name: [*arguments, *settings.extra_args.get(name, ())] for name, arguments in made.items()}


def is_api_server_ready(settings: ControlPlaneSettings, token: str) -> bool:
    """Whether the API server's /readyz returns 200."""
    try:
        context = ssl.create_default_context(cafile=str(settings.ca_file))
    except (FileNotFoundError, ssl.SSLError):  # it creates its certificate when it starts
        return False
    return http_probe.ok(f"{settings.url}/readyz", {"Authorization": f"Bearer {token}"}, context)


def _etcd(settings: ControlPlaneSettings) -> list[str]:
    client = f"http://127.0.0.1:{settings.ports.etcd}"
    peer = f"http://127.0.0.1:{settings.ports.etcd_peer}"
    return [
        "--name=one",
        f"--data-dir={settings.folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=one={peer}",
        "--unsafe-no-fsync",
    ]


def _api_server(settings: ControlPlaneSettings) -> list[str]:
    arguments = [
        f"--etcd-servers=http://127.0.0.1:{settings.ports.etcd}",
        f"--bind-address={settings.address}",
        f"--secure-port={settings.ports.api}",
        f"--cert-dir={settings.ca_file.parent}",
        f"--token-auth-file={settings.tokens_file}",
        f"--authorization-mode={settings.authorization}",
        f"--service-account-key-file={settings.service_account_key}",
        f"--service-account-signing-key-file={settings.service_account_key}",
        f"--service-account-issuer={_ISSUER}",
        f"--api-audiences={_ISSUER}",
        f"--service-cluster-ip-range={settings.service_range}",
        "--allow-privileged=true",
        # The API server then calls webhooks at their pods' addresses and doesn't need kube-proxy.
        "--enable-aggregator-routing=true",
        "--profiling=false",
    ]
    if settings.audit_policy:
        arguments += [f"--audit-policy-file={settings.audit_policy}", f"--audit-log-path={settings.audit_log}"]
    return arguments


def _controller_manager(settings: ControlPlaneSettings) -> list[str]:
    return [
        *_client_arguments("kube-controller-manager", settings, settings.ports.controller_manager),
        f"--service-account-private-key-file={settings.service_account_key}",
        "--use-service-account-credentials=true",
        f"--root-ca-file={settings.ca_file}",
    ]


def _scheduler(settings: ControlPlaneSettings) -> list[str]:
    return _client_arguments("kube-scheduler", settings, settings.ports.scheduler)


def _client_arguments(program: str, settings: ControlPlaneSettings, port: int) -> list[str]:
    kubeconfig = settings.kubeconfigs[program]
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--profiling=false",
    ]
