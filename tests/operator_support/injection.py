"""Pods before and after injection, for tests of the pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from operator_support import objects
from tonnage import contract
from tonnage_operator.api import names
from tonnage_operator.domain.admission.inject import inject
from tonnage_operator.domain.admission.injected_model import resolve_injected_model
from tonnage_operator.domain.admission.pod_request import parse_annotations
from tonnage_operator.domain.modelweights.revisions import parse_resolve_report

if TYPE_CHECKING:
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.observed.model_weights import ModelWeights

RESERVED_INSTALLATION = objects.INSTALLATION.model_copy(
    update={
        "media": {
            medium: host.model_copy(update={"reserved": True}) for medium, host in objects.INSTALLATION.media.items()
        }
    }
)
"""An installation whose media have reserved space, outside of the nodes' allocatable resources."""


def resolved_modelweights(spec: dict[str, Any] | None = None, **more: Any) -> ModelWeights:
    """Returns a ``ModelWeights`` with a resolved revision."""
    unresolved = objects.modelweights(spec, **more)
    seen = parse_resolve_report(objects.resolved_report(), unresolved, now="2026-01-01T00:00:00Z")
    status = {"resolved": seen.model_dump(mode="json", by_alias=True, exclude_none=True)}  # type: ignore[union-attr]
    return objects.modelweights(spec, status=status, **more)


def annotated_pod(annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """Returns a pod that requests the model ``llama``, unless other annotations are given."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "server-",
            "namespace": "serving",
            "annotations": annotations if annotations is not None else {names.MODEL: "llama"},
        },
        "spec": {"containers": [{"name": "server", "image": "vllm"}], **spec},
    }


def inject_pod(
    pod: dict[str, Any],
    *models: ModelWeights,
    warm: tuple[str, ...] = (),
    installation: Installation = objects.INSTALLATION,
) -> dict[str, Any]:
    """Returns the pod with the requested models injected; without ``models`` one resolved default."""
    request = parse_annotations(pod["metadata"]["annotations"], namespace="serving")
    chosen = models or (resolved_modelweights(),)
    injected = tuple(resolve_injected_model(*pair, warm) for pair in zip(request.models, chosen, strict=True))
    return inject(pod, injected, request, installation)


def find_loader(pod: dict[str, Any], name: str = names.LOADER_CONTAINER) -> dict[str, Any]:
    """Returns the loader of an injected pod, or its holder."""
    everywhere = [*pod["spec"]["initContainers"], *pod["spec"]["containers"]]
    found: dict[str, Any] = next(each for each in everywhere if each["name"] == name)
    return found


def own_containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the containers of a pod without the holder that stays beside them."""
    return [each for each in pod["spec"]["containers"] if each["name"] != names.HOLDER_CONTAINER]


def loader_plan(job: dict[str, Any]) -> contract.Plan:
    """Returns the plan inside a Job, as its loader will read it."""
    container = job["spec"]["template"]["spec"]["containers"][0]
    return contract.decode_plan(plain_env(container)["TONNAGE_PLAN"])


def plain_env(container: dict[str, Any]) -> dict[str, str]:
    """Returns a container's environment as the kubelet sets it; variables with ``valueFrom`` are empty."""
    return {each["name"]: each.get("value", "").replace("$$", "$") for each in container.get("env", ())}
