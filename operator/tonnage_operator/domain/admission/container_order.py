"""Where loaders are placed among a pod's init containers. They need a network, which service meshes redirect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tonnage_operator.api.base import Body

MESH_PROXIES: Final = frozenset({"istio-proxy", "linkerd-proxy", "kuma-sidecar", "consul-dataplane"})
"""Containers that are the proxy of a service mesh."""
MESH_INIT_CONTAINERS: Final = frozenset({
    "istio-init", "istio-validation", "linkerd-init", "linkerd-network-validator", "kuma-init", "kuma-validation",
    "consul-connect-inject-init",
})  # fmt: skip
"""Init containers that redirect a pod's network to the mesh's proxy, or wait until it is redirected."""
_CNI_VALIDATORS: Final = frozenset({"istio-validation", "linkerd-network-validator", "kuma-validation"})
"""Init containers that meshes add where a CNI plugin redirects the network, before any container starts."""
_EXCLUDING_ANNOTATIONS: Final = (
    "traffic.sidecar.istio.io/excludeOutboundPorts",
    "traffic.sidecar.istio.io/excludeOutboundIPRanges",
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
    "config.linkerd.io/skip-outbound-ports",
    "traffic.kuma.io/exclude-outbound-ports",
)
"""Annotations of meshes that let some traffic bypass the proxy."""


def place_loaders(init_containers: Iterable[Body], loaders: Iterable[Body]) -> list[Body]:
    """Returns the init containers with loaders among them.

    Loaders come first, so that all other init containers find the weights. A mesh whose proxy is a native sidecar
    redirects the network to a proxy that runs by then, so loaders come after it. A mesh whose proxy is an ordinary
    container redirects it to one that starts only after all init containers, so loaders come before the redirection.
    """
    existing = list(init_containers)
    after_mesh = 0
    if any(_is_native_proxy(each) for each in existing):
        mesh = MESH_PROXIES | MESH_INIT_CONTAINERS
        after_mesh = max(index + 1 for index, each in enumerate(existing) if each["name"] in mesh)
    return [*existing[:after_mesh], *loaders, *existing[after_mesh:]]


def redirects_network_later(spec: Body) -> bool:
    """Returns whether the network is redirected while a loader works that does not end before the others start."""
    init_containers = spec.get("initContainers") or ()
    return any(each["name"] in MESH_INIT_CONTAINERS - _CNI_VALIDATORS for each in init_containers) and not any(
        _is_native_proxy(each) for each in init_containers
    )


def find_network_problem(spec: Body, annotations: Mapping[str, str]) -> str:
    """Returns why loaders of the pod would have no network; empty if nothing is known to prevent it."""
    init_containers = spec.get("initContainers") or ()
    validator = next((each["name"] for each in init_containers if each["name"] in _CNI_VALIDATORS), "")
    if not validator or any(_is_native_proxy(each) for each in init_containers):
        return ""
    if any(annotations.get(name) for name in _EXCLUDING_ANNOTATIONS):
        return ""
    return (
        f"The pod's service mesh ({validator}) redirects its network to a proxy that starts only after the loader. "
        "Enable native sidecars in the mesh, or exclude the store's port, for example with the annotation "
        "traffic.sidecar.istio.io/excludeOutboundPorts or config.linkerd.io/skip-outbound-ports."
    )


def _is_native_proxy(container: Body) -> bool:
    return container["name"] in MESH_PROXIES and container.get("restartPolicy") == "Always"
