"""Mounts of the pod's own that prevent the mount of a model: the container runtime would fail, without a hint."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Final

from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage_operator.api.base import Body

_READ_ONLY_VOLUMES: Final = ("configMap", "secret", "downwardAPI", "projected", "image")
"""Kinds of volumes in which no container can create a folder."""
_REMEDY: Final = f"choose another {names.MOUNT_PATH} or alias."


def find_mount_conflict(container: Body, path: str, volumes: Iterable[Body]) -> str:
    """Returns why nothing can be mounted at ``path`` in a container; empty if it can."""
    read_only = {each["name"] for each in volumes if _is_read_only(each)}
    name = container["name"]
    for mount in container.get("volumeMounts") or ():
        mounted = posixpath.normpath(mount["mountPath"])
        if mounted == path:
            return f"Container {name} already mounts a volume at {path}: {_REMEDY}"
        if mounted.startswith(f"{path}/"):
            return (
                f"Container {name} mounts a volume at {mounted}, inside the model's read-only folder {path}: {_REMEDY}"
            )
        inside = path.startswith(f"{mounted.rstrip('/')}/")
        if inside and (mount.get("readOnly") or mount["name"] in read_only):
            return (
                f"Container {name} mounts volume {mount['name']} read-only at {mounted}, so {path} can't be created in "
                f"it: {_REMEDY}"
            )
    return ""


def _is_read_only(volume: Body) -> bool:
    sources = [source for source in volume.values() if isinstance(source, dict)]
    return any(kind in volume for kind in _READ_ONLY_VOLUMES) or any(source.get("readOnly") for source in sources)
