"""A pod that is reviewed again: another webhook has changed it after the injection."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from tonnage_operator.api import names
from tonnage_operator.domain.admission.container_order import place_loaders
from tonnage_operator.domain.specs import artifacts

if TYPE_CHECKING:
    from collections.abc import Collection

    from tonnage_operator.api.base import Body


def complete_injection(pod: Body, containers: Collection[str] | None) -> Body:
    """Returns an injected pod in which added containers have the models too, and loaders their place after a mesh.

    Mounts and variables are copied from a container that was injected, so the models need not be looked up again.

    Args:
        pod: A pod that ``is_injected``.
        containers: Names of the containers that get the models; None: all but init containers.
    """
    out = copy.deepcopy(pod)
    spec = out["spec"]
    existing = spec.get("initContainers") or []
    ours = [each for each in existing if _is_own_container(each["name"])]
    others = [each for each in existing if not _is_own_container(each["name"])]
    servers = [each for each in spec.get("containers") or () if not _is_own_container(each["name"])]
    everywhere = [*servers, *others]
    volumes = {mount["name"] for each in ours for mount in each.get("volumeMounts") or ()}
    volumes = {
        name
        for name in volumes
        # A directory of artifacts is for one image.
        if name.startswith(names.VOLUME_PREFIX) and not name.startswith(artifacts.VOLUME_PREFIX)
    }
    template = next((each for each in everywhere if _own_mounts(each, volumes)), None)
    if template is not None:
        targets = servers
        if containers is not None:
            targets = [each for each in everywhere if each["name"] in containers]
        for container in targets:
            if not _own_mounts(container, volumes):
                _copy_injection(template, container, volumes)
    spec["initContainers"] = place_loaders(others, ours)
    return out


def _is_own_container(name: str) -> bool:
    return name.startswith(names.LOADER_CONTAINER) or name == names.HOLDER_CONTAINER


def _own_mounts(container: Body, volumes: Collection[str]) -> list[Body]:
    return [dict(each) for each in container.get("volumeMounts") or () if each["name"] in volumes]


def _copy_injection(template: Body, container: Body, volumes: Collection[str]) -> None:
    container["volumeMounts"] = [*(container.get("volumeMounts") or ()), *_own_mounts(template, volumes)]
    env = container.get("env") or []
    present = {each["name"] for each in env}
    ours = [
        each
        for each in template.get("env") or ()
        if each["name"].startswith("TONNAGE_") and each["name"] != artifacts.PATH_VARIABLE
    ]
    container["env"] = [*(dict(each) for each in ours if each["name"] not in present), *env]
