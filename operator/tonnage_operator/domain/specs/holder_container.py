"""Builds the holder's container: it keeps entries in use for the lifetime of a pod, and can change nothing in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Delivery
from tonnage_operator.domain.specs import loader_container

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage_operator.api.base import Body
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.observed.model_weights import ModelWeights
    from tonnage_operator.domain.specs.loader_container import ContainerSpec

MEMORY: Final = 32 << 20
"""Bytes that a holder requests for itself: at least twice what it needs."""
_CPU: Final = "10m"


def build_holder_container(
    models: Sequence[tuple[ModelWeights, ContainerSpec]],
    installation: Installation,
    *,
    optional: bool,
    pod_has_user: bool,
) -> Body:
    """Returns the container that holds the entries of all models of a pod.

    It starts after the loaders, so it needs no probe. It runs as an unprivileged user, mounts entries
    read-only, and has no credentials.

    It requests the memory of the pages that the loaders may have written: they stay after the loaders have ended, and
    are charged to the pod then.

    Args:
        models: The objects and their loaders.
        installation: Image, users and defaults.
        optional: The pod runs without weights if a load failed.
        pod_has_user: The pod sets ``runAsUser``.
    """
    entries = [{**loader_container.entry_mount(weights, spec), "readOnly": True} for weights, spec in models]
    on_host = any(weights.spec.cache.delivery is Delivery.HOST_PATH for weights, _ in models)
    return {
        "name": names.HOLDER_CONTAINER,
        "image": installation.loader.image,
        "imagePullPolicy": installation.loader.pull_policy,
        "command": ["tonnage"],
        "args": [
            "hold",
            *(each["mountPath"] for each in entries),
            *(["--on-failure", "continue"] if optional else []),
        ],
        "resources": _resources(models),
        "securityContext": loader_container.security_context(
            Delivery.EMPTY_DIR, installation, pod_has_user=pod_has_user and not on_host
        ),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [loader_container.no_api_token_mount(models[0][1]), *entries],
    }


def _resources(models: Sequence[tuple[ModelWeights, ContainerSpec]]) -> Body:
    """Returns requests, and limits for the resources for which a loader has one, as quotas may demand."""
    memory = str(MEMORY + sum(spec.memory_bytes for _, spec in models))
    requests = {"cpu": _CPU, "memory": memory}
    limited = {name for weights, _ in models if (each := weights.spec.loader.resources) for name in each.limits or ()}
    limits = {name: amount for name, amount in {"cpu": "100m", "memory": memory}.items() if name in limited}
    return {"requests": requests, **({"limits": limits} if limits else {})}
