"""How to reach the API server: from inside a pod, or by a kubeconfig as kubectl reads it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

_SERVICE_ACCOUNT_DIR: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_MAX_AGE: Final = 60.0
"""Seconds after which a token file is read again; kubelet renews it long before it expires."""


class ClientConfigError(Exception):
    """There is no usable description of an API server; the text says where it was looked for."""


@dataclass
class ClientConfig:
    """One API server and an identity there."""

    server: str
    ca_file: str | None = None
    ca_data: str | None = None
    insecure: bool = False
    token: str | None = None
    token_file: Path | None = None
    client_cert: str | None = None
    client_key: str | None = None
    exec_command: list[str] = field(default_factory=list)
    exec_env: dict[str, str] = field(default_factory=dict)
    _cached_token: tuple[str, float] | None = None

    def ssl_context(self) -> ssl.SSLContext | None:
        """Returns what verifies the server and shows our certificate; None for plain HTTP."""
        if not self.server.startswith("https"):
            return None
        context = ssl.create_default_context(cafile=self.ca_file, cadata=self.ca_data)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.client_cert:
            context.load_cert_chain(self.client_cert, self.client_key)
        return context

    async def bearer_token(self, *, force_refresh: bool = False) -> str | None:
        """Returns the token to send, reading files and running commands anew when they may have changed.

        Args:
            force_refresh: The one given before was refused.

        Raises:
            NoAccess: The kubeconfig's command failed.
        """
        if self.token_file is None and not self.exec_command:
            return self.token
        if self._cached_token and not force_refresh and time.monotonic() < self._cached_token[1]:
            return self._cached_token[0]
        if self.token_file:
            token = self.token_file.read_text().strip()
            self._cached_token = (token, time.monotonic() + _TOKEN_MAX_AGE)
        else:
            token = await self._run_exec_plugin()
            self._cached_token = (token, time.monotonic() + _TOKEN_MAX_AGE * 5)
        return token

    async def _run_exec_plugin(self) -> str:
        info = json.dumps({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "spec": {}})
        process = await asyncio.create_subprocess_exec(
            *self.exec_command,
            stdout=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL,
            env={**os.environ, **self.exec_env, "KUBERNETES_EXEC_INFO": info},
        )
        output, _ = await process.communicate()
        try:
            return str(json.loads(output)["status"]["token"])
        except (ValueError, KeyError, TypeError) as error:
            raise ClientConfigError(f"The kubeconfig's command {self.exec_command[0]} gave no token.") from error


def load_incluster_config(directory: Path = _SERVICE_ACCOUNT_DIR) -> ClientConfig | None:
    """Returns the access of this pod, or None outside of one."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (directory / "token").exists():
        return None
    literal = f"[{host}]" if ":" in host else host
    return ClientConfig(f"https://{literal}:{port}", ca_file=str(directory / "ca.crt"), token_file=directory / "token")


def _find_named(config: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    for each in config.get(f"{kind}s") or ():
        if each["name"] == name:
            return each.get(kind) or {}
    raise ClientConfigError(f"The kubeconfig has no {kind} named {name}.")


def _file_path(entry: dict[str, Any], key: str, base: Path) -> str | None:
    """Returns the path of a file that a kubeconfig names or carries."""
    if data := entry.get(f"{key}-data"):
        handle, path = tempfile.mkstemp(prefix="tonnage-")
        with os.fdopen(handle, "wb") as file:
            file.write(base64.b64decode(data))
        return path
    return str(base / entry[key]) if entry.get(key) else None


def load_kube_config(path: Path, context: str | None = None) -> ClientConfig:
    """Returns the access that a kubeconfig describes.

    Raises:
        NoAccess: It can't be read, or lacks what it refers to.
    """
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ClientConfigError(f"The kubeconfig {path} can't be read: {error}") from error
    chosen = _find_named(config, "context", context or config.get("current-context") or "")
    cluster, user = _find_named(config, "cluster", chosen["cluster"]), _find_named(config, "user", chosen["user"])
    command = user.get("exec") or {}
    token_file = user.get("tokenFile")
    return ClientConfig(
        server=cluster["server"].rstrip("/"),
        ca_file=_file_path(cluster, "certificate-authority", path.parent),
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
        token=user.get("token"),
        token_file=path.parent / token_file if token_file else None,
        client_cert=_file_path(user, "client-certificate", path.parent),
        client_key=_file_path(user, "client-key", path.parent),
        exec_command=[command["command"], *(command.get("args") or ())] if command else [],
        exec_env={each["name"]: each["value"] for each in command.get("env") or ()},
    )


def load_client_config(kubeconfig: str | None = None, context: str | None = None) -> ClientConfig:
    """Returns the access to use: a given kubeconfig, this pod's, ``KUBECONFIG``, ``~/.kube/config``; in this order.

    Raises:
        NoAccess: There is none.
    """
    if kubeconfig:
        return load_kube_config(Path(kubeconfig), context)
    if not context and (client_config := load_incluster_config()):
        return client_config
    paths = [Path(part) for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    for path in paths or [Path.home() / ".kube" / "config"]:
        if path.exists():
            return load_kube_config(path, context)
    raise ClientConfigError(
        "No cluster: this is no pod, and there is no kubeconfig (--kubeconfig, KUBECONFIG, ~/.kube/config)."
    )
