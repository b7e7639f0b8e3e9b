"""A pod with its weights, from a pod that asks for them. Pure, and done twice it is as done once."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator import __version__
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Delivery, LoaderForm
from tonnage_operator.api.placement import Scheduling
from tonnage_operator.domain import claims, loader_pod, plans
from tonnage_operator.domain.claims import Claim
from tonnage_operator.domain.loader_pod import CACHE_ROOT, READY_FILE, STATUS_FILE, TERMINATION_LOG, Loading
from tonnage_operator.domain.requests import OnFailure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage_operator.api.status import SeenRevision
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.requests import Request, Wanted
    from tonnage_operator.domain.weights import Weights

Pod = dict[str, Any]

MESH_INIT: Final = frozenset({
    "istio-init", "istio-validation", "istio-proxy", "linkerd-init", "linkerd-network-validator", "linkerd-proxy",
    "kuma-init", "kuma-validation", "kuma-sidecar", "consul-connect-inject-init", "consul-dataplane",
})  # fmt: skip
"""Init containers without which there is no network, so loaders come after them."""

PREFERENCE: Final = 80
"""Weight, of at most 100, with which warm nodes are preferred."""
MOST_PREFERRED: Final = 256
"""Warm nodes that a preference names; more would make pods large, and any of these is as good."""
_STATUS_FOLDER: Final = ".tonnage"


class Refusal(Exception):
    """The pod can't get what it asks for; the text is for whoever applied it."""


@dataclass(frozen=True)
class Supply:
    """One model that a pod asked for and may have."""

    wanted: Wanted
    weights: Weights
    seen: SeenRevision
    warm: tuple[str, ...] = ()
    """Host names of nodes that have it."""


def available(wanted: Wanted, weights: Weights, warm: tuple[str, ...]) -> Supply:
    """Returns what a model offers now.

    Raises:
        Refusal: It is being deleted, or not resolved yet; the pod's controller tries again.
    """
    if weights.deleting:
        raise Refusal(f"ModelWeights {weights.ref} is being deleted.")
    seen = weights.current
    blocked = [each for each in weights.status.conditions or () if each.type in {"Accepted", "Resolved"}]
    problem = next((each for each in blocked if each.status.value == "False"), None)
    if seen is None or problem:
        why = f"{problem.reason}: {problem.message}" if problem else "its source has not been listed yet."
        raise Refusal(f"ModelWeights {weights.ref} is not resolved: {why} Pods are admitted once it is Ready.")
    return Supply(wanted, weights, seen, warm)


def is_injected(pod: Pod) -> bool:
    """Returns whether the pod has its loaders already. The annotation alone may have been copied from another pod."""
    loaders = [each["name"] for each in pod["spec"].get("initContainers") or ()]
    marked = names.INJECTED in (pod.get("metadata", {}).get("annotations") or {})
    return marked and any(name.startswith(names.LOADER_CONTAINER) for name in loaders)


def without_weights(pod: Pod, reason: str) -> Pod:
    """Returns the pod as it starts without weights, where it asked for that: told by an environment variable."""
    out = copy.deepcopy(pod)
    for container in out["spec"].get("containers") or ():
        _set_env(container, {"TONNAGE_STATUS": "failed", "TONNAGE_REASON": reason[:1000]})
    return out


def inject(pod: Pod, supplies: tuple[Supply, ...], request: Request, installation: Installation) -> Pod:
    """Returns the pod with loaders, volumes, environment, affinity and annotations.

    Raises:
        Refusal: A name that is needed is taken, a container that is named is missing, or no node is warm where one is
            required.
    """
    notes = pod.get("metadata", {}).get("annotations") or {}
    if is_injected(pod):
        return pod
    out = copy.deepcopy(pod)
    spec = out["spec"]
    targets = _targets(spec, request)
    loaders, made = [], []
    for supply in supplies:
        loading, claim = _loading(supply, request, installation)
        _check_free(spec, loading, claim, targets, f"{request.mount_path}/{supply.wanted.alias}")
        loaders.append(_loader(spec, supply, loading, request, installation))
        volumes = spec["volumes"] = list(spec.get("volumes") or ())
        volumes.append(
            loader_pod.entry_volume(
                supply.weights, loading, installation, key=claim.key or claim.revision, size=supply.seen.total_bytes
            )
        )
        volumes.extend(loader_pod.support_volumes(supply.weights, loading, installation))
        for container in targets:
            _mount(container, supply, loading, request)
        _steer(spec, supply, request)
        made.append(claim)
    for container in targets:
        _set_env(container, _variables(supplies, request))
    existing = spec.get("initContainers") or []
    after_mesh = max((index + 1 for index, each in enumerate(existing) if each["name"] in MESH_INIT), default=0)
    spec["initContainers"] = [*existing[:after_mesh], *loaders, *existing[after_mesh:]]
    _pull_secrets(spec, installation)
    metadata = out.setdefault("metadata", {})
    metadata["annotations"] = {
        **notes,
        **loader_pod.report_annotations(installation),
        names.INJECTED: __version__,
        names.REVISION: ",".join(f"{each.wanted.alias}={each.seen.revision}" for each in supplies),
        names.ENTRIES: claims.write(tuple(made)),
    }
    metadata["labels"] = {**(metadata.get("labels") or {}), names.ROLE: names.ROLE_INJECTED}
    return out


def _targets(spec: dict[str, Any], request: Request) -> list[dict[str, Any]]:
    containers: list[dict[str, Any]] = spec.get("containers") or []
    if request.containers is None:
        return containers
    everywhere = [*containers, *(spec.get("initContainers") or [])]
    missing = sorted(set(request.containers) - {each["name"] for each in everywhere})
    if missing:
        raise Refusal(f"{names.CONTAINERS}: the pod has no container named {', '.join(missing)}.")
    return [each for each in everywhere if each["name"] in request.containers]


def _loading(supply: Supply, request: Request, installation: Installation) -> tuple[Loading, Claim]:
    weights, seen, wanted = supply.weights, supply.seen, supply.wanted
    form = request.form or weights.spec.loader.form
    shared = weights.spec.cache.delivery is Delivery.HOST_PATH
    arguments = ["load", "--cache", CACHE_ROOT, "--termination-log", TERMINATION_LOG, "--progress", "off"]
    if form is LoaderForm.SIDECAR:
        arguments += ["--hold", "--ready-file", READY_FILE]
    if request.on_failure is OnFailure.CONTINUE:
        arguments += ["--on-failure", "continue", "--status-file", STATUS_FILE]
    scheduling = request.scheduling or weights.spec.placement.scheduling
    # On a node that must be warm, the loader attaches and writes nothing.
    writes = 0
    if scheduling is not Scheduling.REQUIRE:
        writes = loader_pod.memory_to_write(weights, seen.total_bytes, installation)
    loading = Loading(
        plan=plans.load_plan(weights, seen, installation, ranks=request.ranks),
        arguments=tuple(arguments),
        suffix="" if wanted.only else f"-{wanted.alias}",
        writes=writes,
    )
    claim = Claim(
        container=names.LOADER_CONTAINER + loading.suffix,
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
    return loading, claim


def _loader(
    spec: dict[str, Any], supply: Supply, loading: Loading, request: Request, installation: Installation
) -> dict[str, Any]:
    override = {name: value for name, value in (("cpu", request.cpu), ("memory", request.memory)) if value}
    has_user = "runAsUser" in (spec.get("securityContext") or {})
    container = loader_pod.container(supply.weights, loading, installation, override=override, pod_has_user=has_user)
    if (request.form or supply.weights.spec.loader.form) is LoaderForm.SIDECAR:
        container["restartPolicy"] = "Always"
        container["startupProbe"] = {
            "exec": {"command": ["test", "-e", READY_FILE]},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            # The loader has a deadline of its own, and says why; this one must not come first.
            "failureThreshold": 2_000_000,
        }
    return container


def _check_free(spec: dict[str, Any], loading: Loading, claim: Claim, targets: list[dict[str, Any]], path: str) -> None:
    """Refuses a pod that uses our names for something else."""
    everywhere = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    if any(each["name"] == claim.container for each in everywhere):
        raise Refusal(f"The pod has a container named {claim.container}, which is reserved for Tonnage: rename it.")
    ours = {loading.name(part) for part in loader_pod.VOLUME_PARTS}
    mounted = {mount["name"] for each in everywhere for mount in each.get("volumeMounts") or ()}
    taken = sorted(ours & ({each["name"] for each in spec.get("volumes") or ()} | mounted))
    if taken:
        # A mount alone would give that container the whole entry, to write to.
        raise Refusal(f"The pod has a volume or a mount named {taken[0]}, which is reserved for Tonnage: rename it.")
    for container in targets:
        for mount in container.get("volumeMounts") or ():
            if mount["mountPath"].rstrip("/") == path:
                raise Refusal(
                    f"Container {container['name']} mounts something else at {path}: choose another "
                    f"{names.MOUNT_PATH} or alias."
                )


def _mount(container: dict[str, Any], supply: Supply, loading: Loading, request: Request) -> None:
    path = f"{request.mount_path}/{supply.wanted.alias}"
    mounts = container["volumeMounts"] = list(container.get("volumeMounts") or ())
    folder = f"{loader_pod.folder_in_volume(supply.weights, loading.plan.entry)}/model".lstrip("/")
    mounts.append({"name": loading.name("cache"), "mountPath": path, "subPath": folder, "readOnly": True})
    if request.on_failure is OnFailure.CONTINUE:
        folder = _status_file(request, supply.wanted).rpartition("/")[0]
        mounts.append({"name": loading.name("run"), "mountPath": folder, "readOnly": True})


def _variables(supplies: tuple[Supply, ...], request: Request) -> dict[str, str]:
    first = supplies[0]
    variables = {
        "TONNAGE_MODEL_PATH": f"{request.mount_path}/{first.wanted.alias}",
        "TONNAGE_REVISION": first.seen.revision,
    }
    for supply in supplies:
        wanted = supply.wanted
        variables[f"TONNAGE_MODEL_PATH_{wanted.variable}"] = f"{request.mount_path}/{wanted.alias}"
        if len(supplies) > 1:
            variables[f"TONNAGE_REVISION_{wanted.variable}"] = supply.seen.revision
        if request.on_failure is OnFailure.CONTINUE:
            variables[f"TONNAGE_STATUS_FILE_{wanted.variable}"] = _status_file(request, wanted)
    if request.on_failure is OnFailure.CONTINUE:
        variables["TONNAGE_STATUS_FILE"] = _status_file(request, first.wanted)
    return variables


def _status_file(request: Request, wanted: Wanted) -> str:
    """Returns where an application finds whether it has the model: its environment can't change while it runs."""
    return f"{request.mount_path}/{_STATUS_FOLDER}/{wanted.alias}/status"


def _set_env(container: dict[str, Any], variables: Mapping[str, str]) -> None:
    """Adds variables; those that the container sets itself stay. Ours come first, so that others can refer to them."""
    env = container.get("env") or []
    present = {each["name"] for each in env}
    ours = [{"name": name, "value": value} for name, value in variables.items() if name not in present]
    container["env"] = [*ours, *env]


def _steer(spec: dict[str, Any], supply: Supply, request: Request) -> None:
    """Prefers or requires warm nodes."""
    placement = supply.weights.spec.placement
    scheduling = request.scheduling or placement.scheduling
    if scheduling is Scheduling.REQUIRE and not supply.warm:
        raise Refusal(
            f"No node has {supply.weights.ref} ({supply.seen.revision}) yet, and {names.SCHEDULING} or "
            "spec.placement.scheduling is Require: prewarm nodes, or use Prefer."
        )
    if scheduling is Scheduling.IGNORE or not supply.warm or spec.get("nodeName"):
        return
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    if scheduling is Scheduling.REQUIRE:
        hosts = {"key": names.HOSTNAME_LABEL, "operator": "In", "values": list(supply.warm)}
        required = affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {"nodeSelectorTerms": []})
        terms = required["nodeSelectorTerms"] or [{}]
        # Terms are alternatives, so each of them has to hold it.
        required["nodeSelectorTerms"] = [
            {**term, "matchExpressions": [*(term.get("matchExpressions") or ()), hosts]} for term in terms
        ]
    else:
        hosts = {"key": names.HOSTNAME_LABEL, "operator": "In", "values": list(supply.warm[:MOST_PREFERRED])}
        preferred = affinity.setdefault("preferredDuringSchedulingIgnoredDuringExecution", [])
        preferred.append({"weight": PREFERENCE, "preference": {"matchExpressions": [hosts]}})


def _pull_secrets(spec: dict[str, Any], installation: Installation) -> None:
    present = {each.get("name") for each in spec.get("imagePullSecrets") or ()}
    missing = [{"name": name} for name in installation.loader.pull_secrets if name not in present]
    if missing:
        spec["imagePullSecrets"] = [*(spec.get("imagePullSecrets") or ()), *missing]
