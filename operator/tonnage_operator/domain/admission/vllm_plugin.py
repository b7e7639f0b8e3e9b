"""Adds the plugin of vLLM to a pod that asks for it (``tonnage.dev/vllm-plugin``), so that no image has to have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tonnage_operator.api import names
from tonnage_operator.domain.admission.mount_conflicts import find_mount_conflict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage_operator.api.base import Body

VOLUME: Final = f"{names.VOLUME_PREFIX}vllm-plugin"
CONTAINER_FOLDER: Final = "/opt/tonnage"
"""Where containers have the plugin."""
LOADER_FOLDER: Final = "/run/tonnage/plugin"
"""Where the loader writes it."""
PYTHONPATH: Final = "PYTHONPATH"
_SIZE_LIMIT: Final = "64Mi"


def find_plugin_problem(spec: Body, containers: Sequence[Body]) -> str:
    """Returns why the containers can't have the plugin; empty if they can."""
    volumes = spec.get("volumes") or ()
    if any(each["name"] == VOLUME for each in volumes):
        return f"The pod has a volume named {VOLUME}, which is reserved for Tonnage: rename it."
    for container in containers:
        if conflict := find_mount_conflict(container, CONTAINER_FOLDER, volumes):
            return conflict
        if any(each["name"] == PYTHONPATH and "valueFrom" in each for each in container.get("env") or ()):
            return (
                f"Container {container['name']} has {PYTHONPATH} from elsewhere, so {CONTAINER_FOLDER} can't be added "
                f"to it: set its value, or remove the annotation {names.VLLM_PLUGIN}."
            )
    return ""


def add_plugin(spec: Body, containers: Sequence[Body], loader: Body) -> None:
    """Adds the volume, the loader's argument, and mounts and ``PYTHONPATH`` of containers.

    Args:
        spec: The pod's spec, with a list of volumes.
        containers: Those of the spec that get the plugin.
        loader: The loader that writes it.
    """
    spec["volumes"].append({"name": VOLUME, "emptyDir": {"sizeLimit": _SIZE_LIMIT}})
    loader["volumeMounts"].append({"name": VOLUME, "mountPath": LOADER_FOLDER})
    loader["args"] += ["--plugin", LOADER_FOLDER]
    for container in containers:
        mount = {"name": VOLUME, "mountPath": CONTAINER_FOLDER, "readOnly": True}
        container["volumeMounts"] = [*(container.get("volumeMounts") or ()), mount]
        env = container.get("env") or ()
        own = next((each.get("value") for each in env if each["name"] == PYTHONPATH), None)
        path = f"{CONTAINER_FOLDER}:{own}" if own else CONTAINER_FOLDER
        others = [each for each in env if each["name"] != PYTHONPATH]
        container["env"] = [*others, {"name": PYTHONPATH, "value": path}]
