"""Builds the injected pod from a pod that requests weights. Pure and idempotent."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tonnage_operator import __version__
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Delivery, LoaderForm
from tonnage_operator.api.placement import Scheduling
from tonnage_operator.domain.admission.pod_request import OnFailure
from tonnage_operator.domain.conditions import MESSAGE_LIMIT
from tonnage_operator.domain.observed.held_entries import HeldEntry, format_held_entries
from tonnage_operator.domain.specs import loader_container, plans
from tonnage_operator.domain.specs.loader_container import (
    CACHE_ROOT,
    READY_FILE,
    STATUS_FILE,
    TERMINATION_LOG,
    ContainerSpec,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage_operator.api.base import Body
    from tonnage_operator.api.status import SeenRevision
    from tonnage_operator.domain.admission.pod_request import PodRequest, RequestedModel
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.observed.model_weights import ModelWeights

MESH_INIT_CONTAINERS: Final = frozenset({
    "istio-init", "istio-validation", "istio-proxy", "linkerd-init", "linkerd-network-validator", "linkerd-proxy",
    "kuma-init", "kuma-validation", "kuma-sidecar", "consul-connect-inject-init", "consul-dataplane",
})  # fmt: skip
"""Init containers that set up the network of a service mesh. Loaders are placed after them."""

PREFERENCE: Final = 80
"""Weight of the preferred node affinity for warm nodes; Kubernetes allows 1 to 100."""
MAX_PREFERRED_NODES: Final = 256
"""Maximum number of warm nodes in a preferred node affinity. It limits the size of pods; all warm nodes are equally
good."""
_STATUS_FOLDER: Final = ".tonnage"


class AdmissionDenied(Exception):
    """The pod's request can't be fulfilled. The message is shown to the user who applied the pod."""


@dataclass(frozen=True)
class InjectedModel:
    """A requested model that the pod may use, with its revision."""

    requested: RequestedModel
    weights: ModelWeights
    seen: SeenRevision
    warm: tuple[str, ...] = ()
    """Host names of warm nodes."""


def resolve_injected_model(requested: RequestedModel, weights: ModelWeights, warm: tuple[str, ...]) -> InjectedModel:
    """Returns the model with its revision in use.

    Raises:
        AdmissionDenied: The model is being deleted or not resolved. The pod's controller creates the pod again later.
    """
    if weights.deleting:
        raise AdmissionDenied(f"ModelWeights {weights.ref} is being deleted.")
    seen = weights.current_revision
    blocked = [each for each in weights.status.conditions or () if each.type in {"Accepted", "Resolved"}]
    problem = next((each for each in blocked if each.status.value == "False"), None)
    if seen is None or problem:
        why = f"{problem.reason}: {problem.message}" if problem else "its source has not been listed yet."
        raise AdmissionDenied(f"ModelWeights {weights.ref} is not resolved: {why} Pods are admitted once it is Ready.")
    return InjectedModel(requested, weights, seen, warm)


def is_injected(pod: Body) -> bool:
    """Returns whether the pod already has loaders. The annotation alone may be a copy from another pod."""
    loaders = [each["name"] for each in pod["spec"].get("initContainers") or ()]
    marked = names.INJECTED in (pod.get("metadata", {}).get("annotations") or {})
    return marked and any(name.startswith(names.LOADER_CONTAINER) for name in loaders)


def without_weights(pod: Body, reason: str) -> Body:
    """Returns the pod without weights but with variables that give the reason, for ``on-failure: continue``."""
    out = copy.deepcopy(pod)
    for container in out["spec"].get("containers") or ():
        _add_env(container, {"TONNAGE_STATUS": "failed", "TONNAGE_REASON": reason[:MESSAGE_LIMIT]})
    return out


def inject(pod: Body, models: tuple[InjectedModel, ...], request: PodRequest, installation: Installation) -> Body:
    """Returns the pod with loaders, volumes, environment, affinity and annotations.

    Raises:
        AdmissionDenied: A reserved name is in use, a named container is missing, or scheduling is ``Require`` and no
            node is warm.
    """
    annotations = pod.get("metadata", {}).get("annotations") or {}
    if is_injected(pod):
        return pod
    out = copy.deepcopy(pod)
    spec = out["spec"]
    containers = _target_containers(spec, request)
    loaders, held_entries = [], []
    for model in models:
        container_spec, held_entry = _describe_loader(model, request, installation)
        _check_name_conflicts(
            spec, container_spec, held_entry, containers, f"{request.mount_path}/{model.requested.alias}"
        )
        loaders.append(_build_loader(spec, model, container_spec, request, installation))
        volumes = spec["volumes"] = list(spec.get("volumes") or ())
        volumes.append(
            loader_container.entry_volume(
                model.weights,
                container_spec,
                installation,
                key=held_entry.key or held_entry.revision,
                size=model.seen.total_bytes,
            )
        )
        volumes.extend(loader_container.support_volumes(model.weights, container_spec, installation))
        for container in containers:
            _add_mounts(container, model, container_spec, request)
        _add_node_affinity(spec, model, request)
        held_entries.append(held_entry)
    for container in containers:
        _add_env(container, _env_variables(models, request))
    existing = spec.get("initContainers") or []
    after_mesh = max(
        (index + 1 for index, each in enumerate(existing) if each["name"] in MESH_INIT_CONTAINERS), default=0
    )
    spec["initContainers"] = [*existing[:after_mesh], *loaders, *existing[after_mesh:]]
    _add_image_pull_secrets(spec, installation)
    metadata = out.setdefault("metadata", {})
    metadata["annotations"] = {
        **annotations,
        **loader_container.report_annotations(installation),
        names.INJECTED: __version__,
        names.REVISION: ",".join(f"{each.requested.alias}={each.seen.revision}" for each in models),
        names.ENTRIES: format_held_entries(tuple(held_entries)),
    }
    metadata["labels"] = {**(metadata.get("labels") or {}), names.ROLE: names.ROLE_INJECTED}
    return out


def _target_containers(spec: Body, request: PodRequest) -> list[Body]:
    containers: list[Body] = spec.get("containers") or []
    if request.containers is None:
        return containers
    everywhere = [*containers, *(spec.get("initContainers") or [])]
    missing = sorted(set(request.containers) - {each["name"] for each in everywhere})
    if missing:
        raise AdmissionDenied(f"{names.CONTAINERS}: the pod has no container named {', '.join(missing)}.")
    return [each for each in everywhere if each["name"] in request.containers]


def _describe_loader(
    model: InjectedModel, request: PodRequest, installation: Installation
) -> tuple[ContainerSpec, HeldEntry]:
    weights, seen, requested = model.weights, model.seen, model.requested
    form = request.form or weights.spec.loader.form
    shared = weights.spec.cache.delivery is Delivery.HOST_PATH
    arguments = ["load", "--cache", CACHE_ROOT, "--termination-log", TERMINATION_LOG, "--progress", "off"]
    if form is LoaderForm.SIDECAR:
        arguments += ["--hold", "--ready-file", READY_FILE]
    if request.on_failure is OnFailure.CONTINUE:
        arguments += ["--on-failure", "continue", "--status-file", STATUS_FILE]
    scheduling = request.scheduling or weights.spec.placement.scheduling
    # With Require, the node is warm: the loader finds a hit and writes nothing.
    writes = 0
    if scheduling is not Scheduling.REQUIRE:
        writes = loader_container.memory_cache_bytes(weights, seen.total_bytes, installation)
    container_spec = ContainerSpec(
        plan=plans.build_load_plan(weights, seen, installation, ranks=request.ranks, lists_objects=False),
        arguments=tuple(arguments),
        suffix="" if requested.is_only_model else f"-{requested.alias}",
        memory_bytes=writes,
    )
    held_entry = HeldEntry(
        container=names.LOADER_CONTAINER + container_spec.suffix,
        namespace=weights.namespace,
        name=weights.name,
        uid=weights.uid,
        revision=seen.revision,
        key=weights.key(seen.revision, installation) if shared else "",
        medium=weights.medium(installation),
        bytes=seen.total_bytes,
        ranks=request.ranks_text,
        verify=weights.spec.verify.value,
        optional=request.on_failure is OnFailure.CONTINUE,
    )
    return container_spec, held_entry


def _build_loader(
    spec: Body,
    model: InjectedModel,
    container_spec: ContainerSpec,
    request: PodRequest,
    installation: Installation,
) -> Body:
    override = {name: value for name, value in (("cpu", request.cpu), ("memory", request.memory)) if value}
    has_user = "runAsUser" in (spec.get("securityContext") or {})
    container = loader_container.build_loader_container(
        model.weights, container_spec, installation, override=override, pod_has_user=has_user
    )
    if (request.form or model.weights.spec.loader.form) is LoaderForm.SIDECAR:
        container["restartPolicy"] = "Always"
        container["startupProbe"] = {
            "exec": {"command": ["test", "-e", READY_FILE]},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            # The loader has its own deadline and reports why it failed, so the probe must not fail first.
            "failureThreshold": 2_000_000,
        }
    return container


def _check_name_conflicts(
    spec: Body,
    container_spec: ContainerSpec,
    held_entry: HeldEntry,
    containers: list[Body],
    path: str,
) -> None:
    """Denies a pod that uses a reserved name or mount path."""
    everywhere = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    if any(each["name"] == held_entry.container for each in everywhere):
        raise AdmissionDenied(
            f"The pod has a container named {held_entry.container}, which is reserved for Tonnage: rename it."
        )
    ours = {container_spec.volume_name(part) for part in loader_container.VOLUME_PURPOSES}
    mounted = {mount["name"] for each in everywhere for mount in each.get("volumeMounts") or ()}
    taken = sorted(ours & ({each["name"] for each in spec.get("volumes") or ()} | mounted))
    if taken:
        # Even a mount without a volume would give that container write access to the whole entry.
        raise AdmissionDenied(
            f"The pod has a volume or a mount named {taken[0]}, which is reserved for Tonnage: rename it."
        )
    for container in containers:
        for mount in container.get("volumeMounts") or ():
            if mount["mountPath"].rstrip("/") == path:
                raise AdmissionDenied(
                    f"Container {container['name']} already mounts a volume at {path}: choose another "
                    f"{names.MOUNT_PATH} or alias."
                )


def _add_mounts(container: Body, model: InjectedModel, container_spec: ContainerSpec, request: PodRequest) -> None:
    path = f"{request.mount_path}/{model.requested.alias}"
    mounts = container["volumeMounts"] = list(container.get("volumeMounts") or ())
    folder = f"{loader_container.entry_sub_path(model.weights, container_spec.plan.entry)}/model".lstrip("/")
    mounts.append({"name": container_spec.volume_name("cache"), "mountPath": path, "subPath": folder, "readOnly": True})
    if request.on_failure is OnFailure.CONTINUE:
        folder = _status_file(request, model.requested).rpartition("/")[0]
        mounts.append({"name": container_spec.volume_name("run"), "mountPath": folder, "readOnly": True})


def _env_variables(models: tuple[InjectedModel, ...], request: PodRequest) -> dict[str, str]:
    first = models[0]
    variables = {
        "TONNAGE_MODEL_PATH": f"{request.mount_path}/{first.requested.alias}",
        "TONNAGE_REVISION": first.seen.revision,
    }
    for model in models:
        requested = model.requested
        variables[f"TONNAGE_MODEL_PATH_{requested.env_suffix}"] = f"{request.mount_path}/{requested.alias}"
        if len(models) > 1:
            variables[f"TONNAGE_REVISION_{requested.env_suffix}"] = model.seen.revision
        if request.on_failure is OnFailure.CONTINUE:
            variables[f"TONNAGE_STATUS_FILE_{requested.env_suffix}"] = _status_file(request, requested)
    if request.on_failure is OnFailure.CONTINUE:
        variables["TONNAGE_STATUS_FILE"] = _status_file(request, first.requested)
    return variables


def _status_file(request: PodRequest, requested: RequestedModel) -> str:
    """Returns the path of the file with the load's result. It is a file because variables can't change at run time."""
    return f"{request.mount_path}/{_STATUS_FOLDER}/{requested.alias}/status"


def _add_env(container: Body, variables: Mapping[str, str]) -> None:
    """Adds variables that the container doesn't set. They come first, so that its own can refer to them."""
    env = container.get("env") or []
    present = {each["name"] for each in env}
    ours = [{"name": name, "value": value} for name, value in variables.items() if name not in present]
    container["env"] = [*ours, *env]


def _add_node_affinity(spec: Body, model: InjectedModel, request: PodRequest) -> None:
    """Makes the pod prefer or require warm nodes."""
    placement = model.weights.spec.placement
    scheduling = request.scheduling or placement.scheduling
    if scheduling is Scheduling.REQUIRE and not model.warm:
        raise AdmissionDenied(
            f"No node is warm for {model.weights.ref} ({model.seen.revision}), and {names.SCHEDULING} or "
            "spec.placement.scheduling is Require: prewarm nodes, or use Prefer."
        )
    if scheduling is Scheduling.IGNORE or not model.warm or spec.get("nodeName"):
        return
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    if scheduling is Scheduling.REQUIRE:
        hosts = {"key": names.HOSTNAME_LABEL, "operator": "In", "values": list(model.warm)}
        required = affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {"nodeSelectorTerms": []})
        terms = required["nodeSelectorTerms"] or [{}]
        # Terms are alternatives (OR), so the requirement is added to each.
        required["nodeSelectorTerms"] = [
            {**term, "matchExpressions": [*(term.get("matchExpressions") or ()), hosts]} for term in terms
        ]
    else:
        hosts = {"key": names.HOSTNAME_LABEL, "operator": "In", "values": list(model.warm[:MAX_PREFERRED_NODES])}
        preferred = affinity.setdefault("preferredDuringSchedulingIgnoredDuringExecution", [])
        preferred.append({"weight": PREFERENCE, "preference": {"matchExpressions": [hosts]}})


def _add_image_pull_secrets(spec: Body, installation: Installation) -> None:
    present = {each.get("name") for each in spec.get("imagePullSecrets") or ()}
    missing = [{"name": name} for name in installation.loader.pull_secrets if name not in present]
    if missing:
        spec["imagePullSecrets"] = [*(spec.get("imagePullSecrets") or ()), *missing]
