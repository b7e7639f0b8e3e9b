"""Builds the injected pod from a pod that requests weights. Pure and idempotent."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Final

from tonnage_operator import __version__
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Delivery, LoaderForm, Medium
from tonnage_operator.api.placement import Scheduling
from tonnage_operator.domain import units
from tonnage_operator.domain.admission.artifacts import add_artifacts, find_artifacts_problem
from tonnage_operator.domain.admission.cloud_identity import copy_cloud_identity
from tonnage_operator.domain.admission.container_order import find_network_problem, place_loaders
from tonnage_operator.domain.admission.injected_model import AdmissionDenied
from tonnage_operator.domain.admission.mount_conflicts import find_mount_conflict
from tonnage_operator.domain.admission.node_affinity import prefer_nodes, require_named_nodes, require_other_nodes
from tonnage_operator.domain.admission.pod_request import OnFailure
from tonnage_operator.domain.admission.pod_resources import add_to_pod_resources
from tonnage_operator.domain.admission.reinvocation import complete_injection
from tonnage_operator.domain.admission.requested_ranks import find_fewer_ranks, find_missing_ranks
from tonnage_operator.domain.admission.streaming import find_streaming_problem
from tonnage_operator.domain.admission.vllm_plugin import add_plugin, find_plugin_problem
from tonnage_operator.domain.conditions import MESSAGE_LIMIT
from tonnage_operator.domain.nodecache.capacity import find_size_problem
from tonnage_operator.domain.observed.held_entries import HeldEntry, format_held_entries
from tonnage_operator.domain.specs import loader_container, plans
from tonnage_operator.domain.specs.artifacts import artifacts_environment
from tonnage_operator.domain.specs.holder_container import build_holder_container
from tonnage_operator.domain.specs.loader_container import (
    CACHE_ROOT,
    LOADED_FILE,
    READY_FILE,
    STATUS_FILE,
    TERMINATION_LOG,
    ContainerSpec,
)
from tonnage_operator.domain.specs.namespace_limits import NamespaceLimits, ResourcesNotAllowed, fit_resources

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tonnage_operator.api.base import Body
    from tonnage_operator.domain.admission.injected_model import InjectedModel
    from tonnage_operator.domain.admission.pod_request import PodRequest, RequestedModel
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.observed.model_weights import ModelWeights

_STATUS_FOLDER: Final = ".tonnage"
_NO_LIMITS: Final = NamespaceLimits()


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


def inject(
    pod: Body,
    models: tuple[InjectedModel, ...],
    request: PodRequest,
    installation: Installation,
    limits: NamespaceLimits = _NO_LIMITS,
) -> Body:
    """Returns the pod with loaders, volumes, environment, affinity and annotations.

    Args:
        pod: The pod as it was sent to the API server, or as other webhooks have changed it.
        models: The requested models, in the order of the request.
        request: The pod's annotations.
        installation: Images, host paths and defaults.
        limits: What the pod's namespace requires of each container.

    Raises:
        AdmissionDenied: A reserved name is in use, a named container is missing, a mount prevents those of the models,
            the pod can't have a loader, or not one that streams, a model is larger than any node may hold or doesn't
            have the requested ranks, or scheduling is ``Require`` and no node is warm.
    """
    annotations = pod.get("metadata", {}).get("annotations") or {}
    if is_injected(pod):
        return complete_injection(pod, request.containers)
    out = copy.deepcopy(pod)
    spec = out["spec"]
    containers = _target_containers(spec, request)
    _check_pod(spec, annotations)
    loaders, held_entries, held = [], [], []
    for model in models:
        if problem := _find_problem(spec, model, request, installation):
            raise AdmissionDenied(problem)
        container_spec, held_entry = _describe_loader(model, pod, request, installation)
        _check_name_conflicts(spec, container_spec, held_entry)
        _check_mounts(spec, containers, model, request)
        loaders.append(_build_loader(spec, model, container_spec, request, installation, limits))
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
        _add_node_affinity(spec, model, request, installation)
        held_entries.append(held_entry)
        form = request.form or model.weights.spec.loader.form
        if form is LoaderForm.SIDECAR and not request.streams:  # a loader that streams holds the entry itself
            held.append((model.weights, container_spec))
    variables = _env_variables(models, request)
    if request.artifacts:
        held_entries += _add_artifacts(spec, containers, loaders[0], models[0].weights, request, installation)
        variables |= artifacts_environment()
    if request.vllm_plugin:
        _add_plugin(spec, containers, loaders[0])
    for container in containers:
        _add_env(container, variables)
    add_to_pod_resources(spec, loaders)
    if held:
        _place_holder(spec, loaders, _build_holder(spec, held, request, installation, limits))
    spec["initContainers"] = place_loaders(spec.get("initContainers") or (), loaders)
    _add_image_pull_secrets(spec, installation)
    metadata = out.setdefault("metadata", {})
    metadata["annotations"] = {
        **annotations,
        **loader_container.report_annotations(installation),
        names.SAFE_TO_EVICT_VOLUMES: _safe_to_evict_volumes(annotations, loaders),
        names.INJECTED: __version__,
        names.REVISION: ",".join(f"{each.requested.alias}={each.seen.revision}" for each in models),
        names.ENTRIES: format_held_entries(tuple(held_entries)),
    }
    metadata["labels"] = {**(metadata.get("labels") or {}), names.ROLE: names.ROLE_INJECTED}
    return out


def _add_artifacts(
    spec: Body,
    containers: Sequence[Body],
    loader: Body,
    weights: ModelWeights,
    request: PodRequest,
    installation: Installation,
) -> list[HeldEntry]:
    if problem := find_artifacts_problem(spec, containers, weights, installation):
        raise AdmissionDenied(problem)
    return add_artifacts(spec, containers, loader, weights, request.namespace, installation)


def _find_problem(spec: Body, model: InjectedModel, request: PodRequest, installation: Installation) -> str:
    """Returns why a pod can't have a model as requested, as a sentence; empty if it can."""
    weights, medium = model.weights, model.weights.medium(installation)
    if request.ranks is not None and (missing := find_missing_ranks(weights, model.seen, request.ranks)):
        return missing
    servers = _target_containers(spec, request) if len(request.models) == 1 else ()
    if fewer := find_fewer_ranks(weights, model.seen, servers):
        return fewer
    if request.streams and (problem := find_streaming_problem(spec, weights, request)):
        return problem
    if weights.spec.cache.delivery is not Delivery.HOST_PATH or model.warm or request.ranks is not None:
        return ""  # a node has it already, or a part of it is requested
    problem = find_size_problem(model.seen.total_bytes, installation.limits(medium), medium)
    return f"ModelWeights {weights.ref} can't be loaded: {problem}" if problem else ""


def _add_plugin(spec: Body, containers: Sequence[Body], loader: Body) -> None:
    if problem := find_plugin_problem(spec, containers):
        raise AdmissionDenied(problem)
    add_plugin(spec, containers, loader)


def _target_containers(spec: Body, request: PodRequest) -> list[Body]:
    containers: list[Body] = spec.get("containers") or []
    if request.containers is None:
        return containers
    everywhere = [*containers, *(spec.get("initContainers") or [])]
    missing = sorted(set(request.containers) - {each["name"] for each in everywhere})
    if missing:
        raise AdmissionDenied(f"{names.CONTAINERS}: the pod has no container named {', '.join(missing)}.")
    return [each for each in everywhere if each["name"] in request.containers]


def resolves_names(spec: Body) -> bool:
    """Returns whether a pod, rather than the cluster, decides which server a name stands for."""
    own_names = spec.get("hostAliases") or spec.get("dnsConfig") or spec.get("dnsPolicy") == "None"
    return bool(own_names or spec.get("hostNetwork"))


def cache_key(weights: ModelWeights, revision: str, pod: Body, request: PodRequest, installation: Installation) -> str:
    """Returns the key of the entry that a pod uses."""
    # A pod that starts without its loader's success would mount what its identity may not read.
    # A loader that streams stays beside its pod, with the entry writable.
    separate = resolves_names(pod["spec"]) or request.on_failure is OnFailure.CONTINUE or request.streams
    return weights.key(revision, installation, namespace=request.namespace, separate=separate)


def _describe_loader(
    model: InjectedModel, pod: Body, request: PodRequest, installation: Installation
) -> tuple[ContainerSpec, HeldEntry]:
    weights, seen, requested = model.weights, model.seen, model.requested
    shared = weights.spec.cache.delivery is Delivery.HOST_PATH
    arguments = ["load", "--cache", CACHE_ROOT, "--termination-log", TERMINATION_LOG, "--progress", "off"]
    if request.on_failure is OnFailure.CONTINUE:
        arguments += ["--on-failure", "continue"]
    if request.has_status_file:
        arguments += ["--status-file", STATUS_FILE]
    if request.streams:
        arguments += ["--stream", "--hold", "--ready-file", READY_FILE, "--loaded-file", LOADED_FILE]
    # With Require, the node is warm as a rule: the loader finds a hit and writes nothing.
    writes = 0
    if model.scheduling(request) is not Scheduling.REQUIRE:
        writes = loader_container.memory_cache_bytes(weights, seen.total_bytes, installation)
    container_spec = ContainerSpec(
        plan=plans.build_load_plan(weights, seen, installation, ranks=request.ranks, lists_objects=model.lists_objects),
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
        key=cache_key(weights, seen.revision, pod, request, installation) if shared else "",
        medium=weights.medium(installation),
        bytes=seen.total_bytes,
        ranks=request.ranks_text,
        verify=weights.spec.verify.value,
        optional=request.on_failure is OnFailure.CONTINUE,
        group=model.group,
    )
    return container_spec, held_entry


def _build_loader(
    spec: Body,
    model: InjectedModel,
    container_spec: ContainerSpec,
    request: PodRequest,
    installation: Installation,
    limits: NamespaceLimits,
) -> Body:
    override = {name: value for name, value in (("cpu", request.cpu), ("memory", request.memory)) if value}
    container = loader_container.build_loader_container(
        model.weights, container_spec, installation, override=override, pod_has_user=_has_user(spec)
    )
    written = 0
    if model.scheduling(request) is not Scheduling.REQUIRE and model.weights.medium(installation) is Medium.MEMORY:
        written = model.seen.total_bytes + units.parse_quantity(installation.loader.memory_overhead)
    on_disk = model.weights.medium(installation) is Medium.DISK
    volume = on_disk and model.weights.spec.cache.delivery is Delivery.EMPTY_DIR
    stored = model.seen.total_bytes if volume else 0
    container["resources"] = _fit(container, limits, memory_floor=written, storage_floor=stored)
    if request.streams:
        container |= loader_container.streaming_fields()
    credentials = model.weights.spec.credentials
    if credentials is None or not (credentials.secret_ref or credentials.anonymous):
        copy_cloud_identity(spec.get("containers") or (), container)
    return container


def _build_holder(
    spec: Body,
    held: Sequence[tuple[ModelWeights, ContainerSpec]],
    request: PodRequest,
    installation: Installation,
    limits: NamespaceLimits,
) -> Body:
    """Returns the holder. Its limits are the namespace's; the memory that loaders wrote is not charged to it."""
    optional = request.on_failure is OnFailure.CONTINUE
    holder = build_holder_container(held, installation, optional=optional, pod_has_user=_has_user(spec))
    holder["resources"] = _fit(holder, limits)
    return holder


def _place_holder(spec: Body, loaders: list[Body], holder: Body) -> None:
    """Adds the holder to the pod's containers, or to the loaders as a native sidecar.

    The kubelet starts one init container a second, and all containers together, so a holder among the containers delays
    nothing. But a pod that may complete would run as long as such a holder.
    """
    if spec.get("restartPolicy", "Always") == "Always":
        spec["containers"].append(holder)
    else:
        loaders.append({**holder, "restartPolicy": "Always"})


def _fit(container: Body, limits: NamespaceLimits, *, memory_floor: int = 0, storage_floor: int = 0) -> Body:
    try:
        return fit_resources(container["resources"], limits, memory_floor=memory_floor, storage_floor=storage_floor)
    except ResourcesNotAllowed as error:
        raise AdmissionDenied(str(error)) from error


def _has_user(spec: Body) -> bool:
    return "runAsUser" in (spec.get("securityContext") or {})


def _check_pod(spec: Body, annotations: Mapping[str, str]) -> None:
    """Denies a pod in which no loader could work."""
    system = (spec.get("os") or {}).get("name") or (spec.get("nodeSelector") or {}).get(names.OS_LABEL) or "linux"
    if system != "linux":
        raise AdmissionDenied(f"The pod is for nodes with {system}, and loaders run on Linux.")
    if problem := find_network_problem(spec, annotations):
        raise AdmissionDenied(problem)


def _check_name_conflicts(spec: Body, container_spec: ContainerSpec, held_entry: HeldEntry) -> None:
    """Denies a pod that uses a reserved name."""
    everywhere = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    for name in (held_entry.container, names.HOLDER_CONTAINER):
        if any(each["name"] == name for each in everywhere):
            raise AdmissionDenied(f"The pod has a container named {name}, which is reserved for Tonnage: rename it.")
    ours = {container_spec.volume_name(part) for part in loader_container.VOLUME_PURPOSES}
    mounted = {mount["name"] for each in everywhere for mount in each.get("volumeMounts") or ()}
    taken = sorted(ours & ({each["name"] for each in spec.get("volumes") or ()} | mounted))
    if taken:
        # Even a mount without a volume would give that container write access to the whole entry.
        raise AdmissionDenied(
            f"The pod has a volume or a mount named {taken[0]}, which is reserved for Tonnage: rename it."
        )


def _check_mounts(spec: Body, containers: Iterable[Body], model: InjectedModel, request: PodRequest) -> None:
    """Denies a pod whose own mounts prevent those of the model."""
    paths = [f"{request.mount_path}/{model.requested.alias}"]
    if request.has_status_file:
        paths.append(_status_file(request, model.requested).rpartition("/")[0])
    for container in containers:
        for path in paths:
            if conflict := find_mount_conflict(container, path, spec.get("volumes") or ()):
                raise AdmissionDenied(conflict)


def _safe_to_evict_volumes(annotations: Mapping[str, str], loaders: Iterable[Body]) -> str:
    """Returns the pod's own list of volumes that the cluster autoscaler may drop, with those of the loaders added.

    Without it, a volume on the node would keep the autoscaler from removing a node that is no longer needed.
    """
    own = [each for each in annotations.get(names.SAFE_TO_EVICT_VOLUMES, "").split(",") if each]
    added = {mount["name"] for loader in loaders for mount in loader["volumeMounts"]}
    ours = sorted(name for name in added if name.startswith(names.VOLUME_PREFIX) and name not in own)
    return ",".join([*own, *ours])


def _add_mounts(container: Body, model: InjectedModel, container_spec: ContainerSpec, request: PodRequest) -> None:
    path = f"{request.mount_path}/{model.requested.alias}"
    mounts = container["volumeMounts"] = list(container.get("volumeMounts") or ())
    shown = "stream" if request.streams else "model"
    folder = f"{loader_container.entry_sub_path(model.weights, container_spec.plan.entry)}/{shown}".lstrip("/")
    mounts.append({"name": container_spec.volume_name("cache"), "mountPath": path, "subPath": folder, "readOnly": True})
    if request.has_status_file:
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
        variables[f"TONNAGE_REVISION_{requested.env_suffix}"] = model.seen.revision
        if request.has_status_file:
            variables[f"TONNAGE_STATUS_FILE_{requested.env_suffix}"] = _status_file(request, requested)
    if request.has_status_file:
        variables["TONNAGE_STATUS_FILE"] = _status_file(request, first.requested)
    return variables


def _status_file(request: PodRequest, requested: RequestedModel) -> str:
    """Returns the path of the file with the load's result. It is a file because variables can't change at run time."""
    return f"{request.mount_path}/{_STATUS_FOLDER}/{requested.alias}/status"


def _add_env(container: Body, variables: Mapping[str, str]) -> None:
    """Adds variables that the container doesn't set. They come first, so that its own can refer to them."""
    env = container.get("env") or []
    present = {each["name"] for each in env}
    ours = {name: plans.escape_references(value) for name, value in variables.items() if name not in present}
    container["env"] = [*({"name": name, "value": value} for name, value in ours.items()), *env]


def _add_node_affinity(spec: Body, model: InjectedModel, request: PodRequest, installation: Installation) -> None:
    """Makes the pod prefer warm nodes, or keeps it from those that are cold now."""
    scheduling, cold = model.scheduling(request), model.cold
    if scheduling is Scheduling.REQUIRE:
        waits_for_new_node = cold is not None and not cold.may_become_warm
        if not model.warm and not waits_for_new_node:
            raise AdmissionDenied(_describe_missing_warm_node(model, request))
        if spec.get("nodeName") or (cold and require_other_nodes(spec, model.weights, cold, installation)):
            return
        if not model.warm:
            raise AdmissionDenied(_describe_missing_warm_node(model, request))
        require_named_nodes(spec, model.warm)
    elif scheduling is Scheduling.PREFER and model.warm and not spec.get("nodeName"):
        prefer_nodes(spec, model.warm)


def _describe_missing_warm_node(model: InjectedModel, request: PodRequest) -> str:
    return (
        f"No node is warm for {model.weights.ref} ({model.seen.revision}), and {names.SCHEDULING} or "
        "spec.placement.scheduling is Require: "
        + (
            "prewarm nodes, or use Prefer."
            if model.is_warmed
            else "the pod's group keeps a revision that its Jobs no longer load. Use Prefer."
            if model.group and model.is_earlier
            else f"its Jobs don't load this pod's entry, {request.namespace}/{model.seen.revision}. Use Prefer, or "
            f"create a ModelWeights with the same source in namespace {request.namespace}."
        )
    )


def _add_image_pull_secrets(spec: Body, installation: Installation) -> None:
    present = {each.get("name") for each in spec.get("imagePullSecrets") or ()}
    missing = [{"name": name} for name in installation.loader.pull_secrets if name not in present]
    if missing:
        spec["imagePullSecrets"] = [*(spec.get("imagePullSecrets") or ()), *missing]
