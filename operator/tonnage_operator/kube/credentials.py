"""Finds the API server and an identity there, with the loaders of the official Kubernetes client.

In a pod that is its service account; elsewhere a kubeconfig, read and merged as kubectl does, with token files, client
certificates, exec plugins and OIDC.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kubernetes.aio.config.kube_config import KubeConfigLoader

_MAX_AGE: Final = 60.0
"""Seconds after which credentials are looked at again. A token file is read then; an exec plugin runs only if its token
is about to expire."""
_MIN_AGE: Final = 1.0
"""Seconds for which fresh credentials count as fresh, so that requests that are refused together cause one reload."""


class ClientConfigError(Exception):
    """No usable configuration was found; the text lists where it was searched."""


def _environment_proxy(url: str) -> str | None:
    """Returns the proxy that the environment's variables name for a URL."""
    parts = urlsplit(url)
    if not parts.hostname or proxy_bypass(parts.hostname):
        return None
    return getproxies().get(parts.scheme)


class ClientConfig:
    """An API server and an identity there: the official client's configuration, with credentials that stay fresh.

    A proxy is the one that the kubeconfig names, or else that of the environment's variables.

    Args:
        configuration: Host, TLS settings and credentials.
        load: Loads credentials into the configuration; with True from their source, whatever is cached. None: they
            never change.
    """

    def __init__(self, configuration: Configuration, load: Callable[[bool], Awaitable[None]] | None = None) -> None:
        configuration.proxy = configuration.proxy or _environment_proxy(configuration.host)
        self.configuration = configuration
        self._load = load
        self._loaded = time.monotonic()
        self._lock = asyncio.Lock()
        configuration.refresh_api_key_hook = lambda _: self.refresh()  # type: ignore[assignment]  # inferred as None

    async def refresh(self, *, rejected: bool = False) -> None:
        """Loads the credentials again when that is due, or when the API server rejected them.

        Raises:
            ClientConfigError: They can't be loaded any more.
        """
        if self._load is None:
            return
        async with self._lock:
            if time.monotonic() - self._loaded >= (_MIN_AGE if rejected else _MAX_AGE):
                await self._load(rejected)
                self._loaded = time.monotonic()


async def find_client_config(kubeconfig: str | None = None, context: str | None = None) -> ClientConfig:
    """Returns the configuration of a given kubeconfig, this pod, ``KUBECONFIG`` or ``~/.kube/config``; in this order.

    Raises:
        ClientConfigError: There is none, or it can't be used.
    """
    if kubeconfig:
        return await from_kubeconfig(kubeconfig, context)
    if not context and "KUBERNETES_SERVICE_HOST" in os.environ:
        return await from_service_account()
    paths = [path for path in _kubeconfig_paths() if path.exists()]
    if paths:
        return await from_kubeconfig(os.pathsep.join(map(str, paths)), context)
    raise ClientConfigError(
        "No cluster: this is no pod, and there is no kubeconfig (--kubeconfig, KUBECONFIG, ~/.kube/config)."
    )


def _kubeconfig_paths() -> list[Path]:
    paths = [Path(part) for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    return paths or [Path.home() / ".kube" / "config"]


async def from_service_account() -> ClientConfig:
    """Returns the configuration of this pod's service account.

    Raises:
        ClientConfigError: No service account's token is mounted.
    """
    configuration = Configuration()

    async def load(_: bool) -> None:  # noqa: FBT001 - the callback's form
        try:
            load_incluster_config(client_configuration=configuration, try_refresh_token=False)
        except (ConfigException, OSError) as error:
            raise ClientConfigError(f"The pod's service account can't be used: {error}") from error

    await load(True)  # noqa: FBT003
    return ClientConfig(configuration, load)


async def from_kubeconfig(paths: str, context: str | None = None) -> ClientConfig:
    """Returns the configuration that a kubeconfig describes.

    Args:
        paths: A file, or several joined by ``os.pathsep``, which are merged.
        context: The context to use; None: the current one.

    Raises:
        ClientConfigError: It can't be read, or lacks what it refers to.
    """
    configuration = Configuration()
    loader: KubeConfigLoader | None = None

    async def load(rejected: bool) -> None:  # noqa: FBT001 - the callback's form
        nonlocal loader
        try:
            if loader is None or rejected:
                loader = await load_kube_config(
                    paths, context, client_configuration=configuration, persist_config=False
                )
            else:
                await loader.load_and_set(configuration)
        except (ConfigException, OSError, yaml.YAMLError, ValueError, KeyError, TypeError) as error:
            raise ClientConfigError(f"The kubeconfig {paths} can't be used: {error}") from error

    await load(True)  # noqa: FBT003
    return ClientConfig(configuration, load)
