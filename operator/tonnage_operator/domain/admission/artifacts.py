"""Adds directories of engine artifacts to a pod that asks for them (``tonnage.dev/artifacts``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Delivery, Medium
from tonnage_operator.domain import naming
from tonnage_operator.domain.admission.mount_conflicts import find_mount_conflict
from tonnage_operator.domain.observed.held_entries import MAX_HELD_ARTIFACTS, MAX_IMAGE_LENGTH, HeldEntry
from tonnage_operator.domain.specs import artifacts
from tonnage_operator.domain.specs.artifacts import ArtifactsDirectory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage_operator.api.base import Body
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.observed.model_weights import ModelWeights

_REMOVE = f"or remove the annotation {names.ARTIFACTS}."


def find_artifacts_problem(
    spec: Body, containers: Sequence[Body], weights: ModelWeights, installation: Installation
) -> str:
    """Returns why the containers can't have directories of artifacts; empty if they can."""
    return _find_missing_medium(weights, installation) or _find_conflict(spec, containers)


def _find_missing_medium(weights: ModelWeights, installation: Installation) -> str:
    if not installation.artifacts.enabled:
        return f"Artifacts are turned off in this installation (artifacts.enabled): ask its administrator, {_REMOVE}"
    if Medium.DISK not in installation.media:
        return (
            "Artifacts are kept on the nodes' medium Disk, which this installation doesn't have (cache.disk.enabled): "
            f"ask its administrator, {_REMOVE}"
        )
    if weights.spec.cache.delivery is not Delivery.HOST_PATH:
        return (
            f"Artifacts are a folder of the node, and ModelWeights {weights.ref} has the delivery "
            f"{weights.spec.cache.delivery.value}, for namespaces without host paths: use HostPath, {_REMOVE}"
        )
    return ""


def _find_conflict(spec: Body, containers: Sequence[Body]) -> str:
    volumes = spec.get("volumes") or ()
    everywhere = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    used = {each["name"] for each in volumes}
    used |= {mount["name"] for each in everywhere for mount in each.get("volumeMounts") or ()}
    if taken := sorted(name for name in used if name.startswith(artifacts.VOLUME_PREFIX)):
        return f"The pod has a volume or a mount named {taken[0]}, which is reserved for Tonnage: rename it."
    for container in containers:
        if conflict := find_mount_conflict(container, artifacts.CONTAINER_FOLDER, volumes):
            return conflict
    if len({(each.get("image", ""), _user(spec, each)) for each in containers}) > MAX_HELD_ARTIFACTS:
        return (
            f"{names.ARTIFACTS}: the pod has more than {MAX_HELD_ARTIFACTS} different images or users: list the "
            f"engine's containers in {names.CONTAINERS}."
        )
    return ""


def add_artifacts(
    spec: Body,
    containers: Sequence[Body],
    loader: Body,
    weights: ModelWeights,
    namespace: str,
    installation: Installation,
) -> list[HeldEntry]:
    """Adds volumes, mounts and the loader's arguments, and returns the held entries of the directories.

    Args:
        spec: The pod's spec, with a list of volumes.
        containers: Those of the spec that get a directory, each the one of its image and user.
        loader: The loader that prepares the directories.
        weights: The model; the directories go when it is deleted.
        namespace: The pod's.
        installation: The host paths.
    """
    directories: dict[str, ArtifactsDirectory] = {}
    for container in containers:
        image = container.get("image", "")
        key = naming.artifacts_key(namespace, weights.ref, image, _user(spec, container))
        directory = directories.setdefault(key, ArtifactsDirectory(key, len(directories), image))
        container["volumeMounts"] = [*(container.get("volumeMounts") or ()), directory.container_mount()]
    for directory in directories.values():
        spec["volumes"].append(directory.volume(installation))
        loader["volumeMounts"].append(directory.loader_mount())
        loader["args"] += ["--artifacts", directory.loader_path]
    artifacts.add_capabilities(loader)
    return [
        HeldEntry(
            container=loader["name"],
            namespace=weights.namespace,
            name=weights.name,
            uid=weights.uid,
            revision="",
            key=each.key,
            medium=Medium.DISK,
            image=each.image[:MAX_IMAGE_LENGTH],
        )
        for each in directories.values()
    ]


def _user(spec: Body, container: Body) -> int | None:
    """Returns the user that the pod's spec sets for a container; None: the image's own."""
    for context in (container.get("securityContext"), spec.get("securityContext")):
        if (user := (context or {}).get("runAsUser")) is not None:
            return int(user)
    return None
