"""Builds the loader's container and its volumes, for Jobs and for injected pods."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Delivery, Medium
from tonnage_operator.domain import naming, units
from tonnage_operator.domain.specs import plans

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage import contract
    from tonnage_operator.api.base import Body, KeyReference
    from tonnage_operator.api.modelweights import ModelWeightsSpec, ResourceRequirements
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.observed.model_weights import ModelWeights

CACHE_ROOT: Final = "/cache"
RUN_FOLDER: Final = "/run/tonnage"
VOLUME_PURPOSES: Final = ("cache", "run", "ca", "urls", "token")
"""Purposes of a loader's volumes, which are part of their names."""
ACCOUNT_FOLDER: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where Kubernetes mounts a pod's API token, unless the container has its own mount there."""
STATUS_FILE: Final = f"{RUN_FOLDER}/status"
READY_FILE: Final = f"{RUN_FOLDER}/ready"
LOADED_FILE: Final = f"{RUN_FOLDER}/loaded"
TERMINATION_LOG: Final = "/dev/termination-log"

REQUIRED_KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
HUB_KEYS: Final = ("HF_TOKEN",)
OPTIONAL_KEYS: Final = ("AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION")


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """Parameters of one loader container.

    ``suffix`` makes names unique if a pod has several loaders; it is empty for a single one. ``arguments`` exclude the
    executable.
    """

    plan: contract.Plan
    arguments: tuple[str, ...]
    suffix: str = ""
    memory_bytes: int = 0
    """Bytes that it writes to memory; 0 if it writes to disk or not at all."""

    def volume_name(self, purpose: str) -> str:
        """Returns the name of the volume for a purpose; see ``VOLUME_PURPOSES``."""
        return f"{names.VOLUME_PREFIX}{purpose}{self.suffix}"


def _environment(spec: ModelWeightsSpec, container_spec: ContainerSpec, installation: Installation) -> list[Body]:
    env: list[Body] = [
        {"name": "TONNAGE_PLAN", "value": plans.plan_variable(container_spec.plan)},
        {"name": "TONNAGE_NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "TONNAGE_POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]
    if spec.credentials and (secret := spec.credentials.secret_ref):
        # Key by key: the kubelet then reports which one is missing, and other keys of the Secret are not exposed.
        required, optional = (HUB_KEYS, ()) if spec.source.hub else (REQUIRED_KEYS, OPTIONAL_KEYS)
        for key in (*required, *optional):
            reference: Body = {"name": secret.name, "key": key}
            if key in optional:
                reference["optional"] = True
            env.append({"name": key, "valueFrom": {"secretKeyRef": reference}})
    if urls := _urls_secret_ref(spec):
        # The loader reads the file, which follows updates. The variable makes the kubelet report a missing key.
        reference = {"name": urls.name, "key": urls.key}
        env.append({"name": plans.URLS_ENV, "valueFrom": {"secretKeyRef": reference}})
    if installation.loader.ca_bundle:
        env.append({"name": "TONNAGE_CA_PEM", "value": installation.loader.ca_bundle})
        env.append({"name": "TMPDIR", "value": RUN_FOLDER})  # for the file with these CAs and those of the image
    present = {each["name"] for each in env}
    env += [{"name": each.name, "value": each.value} for each in installation.loader.env if each.name not in present]
    return env


def _urls_secret_ref(spec: ModelWeightsSpec) -> KeyReference | None:
    return spec.source.http.urls_from if spec.source.http else None


def resource_requirements(
    requested: ResourceRequirements | None,
    installation: Installation,
    *,
    memory_bytes: int,
    override: Mapping[str, str] | None = None,
) -> Body:
    """Returns requests and limits of a loader.

    Pages of a memory cache are charged to the container that writes them. Therefore the bytes are requested, and a
    lower memory limit is raised.

    Args:
        requested: Requests and limits in the object's spec. They take precedence over the installation's.
        installation: Default requests and the memory overhead.
        memory_bytes: Bytes that the loader writes to memory; 0: none.
        override: Requests in the pod's annotations, by resource. They take precedence over all others.
    """
    amounts = requested or installation.loader.resources
    requests = {**(installation.loader.resources.requests or {}), **(amounts.requests or {}), **(override or {})}
    limits = dict(amounts.limits or {})
    needed = memory_bytes + units.parse_quantity(installation.loader.memory_overhead)
    if memory_bytes and not (override and "memory" in override):
        requests["memory"] = str(max(needed, units.parse_quantity(requests.get("memory", "0"))))
    if memory_bytes and "memory" in limits:
        limits["memory"] = str(max(needed, units.parse_quantity(limits["memory"])))
    for name, limit in limits.items():
        if name in requests and _amount(requests[name]) > _amount(limit):
            limits[name] = requests[name]
    return {"requests": requests, **({"limits": limits} if limits else {})}


def _amount(quantity: str) -> float:
    """Returns a quantity as a number for comparisons, with fractions of CPUs."""
    return (
        units.parse_quantity(quantity[:-1]) / 1000 if quantity.endswith("m") else float(units.parse_quantity(quantity))
    )


def memory_cache_bytes(weights: ModelWeights, total_bytes: int, installation: Installation) -> int:
    """Returns the bytes that a loader must request for its entry, if the entry is in memory.

    0 if the cache's memory is reserved outside the nodes' allocatable memory.
    """
    medium = weights.medium(installation)
    if medium is not Medium.MEMORY:
        return 0
    host = installation.media.get(medium)
    shared = weights.spec.cache.delivery is Delivery.HOST_PATH
    return 0 if shared and host and host.reserved else total_bytes


def security_context(delivery: Delivery, installation: Installation, *, pod_has_user: bool = False) -> Body:
    """Returns the strictest context that works: without a host path, it meets the restricted Pod Security Standard."""
    context: Body = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if delivery is Delivery.HOST_PATH:
        context["runAsUser"] = installation.loader.uid
        context["runAsNonRoot"] = installation.loader.uid != 0
        if installation.loader.se_linux_options:
            context["seLinuxOptions"] = dict(installation.loader.se_linux_options)
    else:
        context["runAsNonRoot"] = True
        if not pod_has_user:
            context["runAsUser"] = installation.loader.unprivileged_uid
    return context


def build_loader_container(
    weights: ModelWeights,
    container_spec: ContainerSpec,
    installation: Installation,
    *,
    mounts_entry: bool = True,
    override: Mapping[str, str] | None = None,
    pod_has_user: bool = False,
) -> Body:
    """Returns the loader's container, without the fields that depend on its form."""
    mounts: list[Body] = [
        {"name": container_spec.volume_name("run"), "mountPath": RUN_FOLDER},
        no_api_token_mount(container_spec),
    ]
    if mounts_entry:
        mounts.append(entry_mount(weights, container_spec))
    if plans.ca_bundle(weights.spec.source):
        mounts.append({"name": container_spec.volume_name("ca"), "mountPath": plans.CA_FOLDER, "readOnly": True})
    if _urls_secret_ref(weights.spec):
        mounts.append({"name": container_spec.volume_name("urls"), "mountPath": plans.URLS_FOLDER, "readOnly": True})
    if installation.reports.url:
        mounts.append({"name": container_spec.volume_name("token"), "mountPath": plans.TOKEN_FOLDER, "readOnly": True})
    delivery = weights.spec.cache.delivery if mounts_entry else Delivery.EMPTY_DIR
    return {
        "name": names.LOADER_CONTAINER + container_spec.suffix,
        "image": installation.loader.image,
        "imagePullPolicy": installation.loader.pull_policy,
        "command": ["tonnage"],
        "args": list(container_spec.arguments),
        "env": _environment(weights.spec, container_spec, installation),
        "resources": resource_requirements(
            weights.spec.loader.resources, installation, memory_bytes=container_spec.memory_bytes, override=override
        ),
        "securityContext": security_context(delivery, installation, pod_has_user=pod_has_user),
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    }


def streaming_fields() -> Body:
    """Returns the fields of a loader that works beside the server, which starts when the table of files is there.

    The loader has its own deadline, and reports why it failed, so no probe may fail first. Its readiness, which is the
    pod's too, is that nothing more will be loaded. Once ready, it stays so.
    """
    never = 2_000_000
    common = {"timeoutSeconds": 5, "failureThreshold": never}
    return {
        "restartPolicy": "Always",
        "startupProbe": {"exec": {"command": ["test", "-e", READY_FILE]}, "periodSeconds": 1, **common},
        "readinessProbe": {"exec": {"command": ["test", "-e", LOADED_FILE]}, "periodSeconds": 10, **common},
    }


def no_api_token_mount(container_spec: ContainerSpec) -> Body:
    """Returns the mount of an empty folder over the pod's API token, which no container of ours uses."""
    name = container_spec.volume_name("run")
    return {"name": name, "mountPath": ACCOUNT_FOLDER, "subPath": "no-api-token", "readOnly": True}


def entry_mount(weights: ModelWeights, container_spec: ContainerSpec) -> Body:
    """Returns the mount of the entry's folder, which is writable."""
    entry = container_spec.plan.entry
    folder = {"subPath": sub_path} if (sub_path := entry_sub_path(weights, entry)) else {}
    return {"name": container_spec.volume_name("cache"), "mountPath": f"{CACHE_ROOT}/{entry}", **folder}


def entry_sub_path(weights: ModelWeights, entry: str) -> str:
    """Returns the entry's folder in its volume; empty if the volume contains only the entry.

    A claim may contain several models and revisions.
    """
    return entry if weights.spec.cache.delivery is Delivery.CLAIM else ""


def entry_volume(
    weights: ModelWeights,
    container_spec: ContainerSpec,
    installation: Installation,
    *,
    key: str,
    size: int,
) -> Body:
    """Returns the volume that holds the entry.

    Args:
        weights: The object, which selects the kind of volume.
        container_spec: The container, for the volume's name.
        installation: The host paths.
        key: The entry's cache key: its path below the medium's folder.
        size: Bytes of the entry, for the limit of an EmptyDir in memory.
    """
    cache, name = weights.spec.cache, container_spec.volume_name("cache")
    medium = weights.medium(installation)
    if cache.delivery is Delivery.CLAIM:
        return {"name": name, "persistentVolumeClaim": {"claimName": cache.claim_name}}
    if cache.delivery is Delivery.EMPTY_DIR:
        folder: Body = {}
        if medium is Medium.MEMORY:
            folder = {"medium": "Memory", "sizeLimit": str(size + size // 20 + (64 << 20))}
        return {"name": name, "emptyDir": folder}
    return {"name": name, "hostPath": {"path": host_path(installation, medium, key), "type": "DirectoryOrCreate"}}


def host_path(installation: Installation, medium: Medium, key: str) -> str:
    """Returns the folder of an entry on the nodes.

    Raises:
        ValueError: The key is not one of an entry, and might lead out of the medium's folder.
    """
    if not naming.is_cache_key(key):
        raise ValueError(f"{key[:100]!r} is not the name of an entry")
    return f"{installation.media[medium].host_path}/{key}"


def support_volumes(weights: ModelWeights, container_spec: ContainerSpec, installation: Installation) -> list[Body]:
    """Returns the other volumes: a private one, the source's CA, presigned URLs, the token for reports."""
    volumes: list[Body] = [
        {"name": container_spec.volume_name("run"), "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}
    ]
    if bundle := plans.ca_bundle(weights.spec.source):
        items = {}
        if reference := bundle.config_map_key_ref:
            items = {"configMap": {"name": reference.name, "items": [{"key": reference.key, "path": "ca.crt"}]}}
        elif reference := bundle.secret_key_ref:
            items = {"secret": {"secretName": reference.name, "items": [{"key": reference.key, "path": "ca.crt"}]}}
        volumes.append({"name": container_spec.volume_name("ca"), **items})
    if urls := _urls_secret_ref(weights.spec):
        secret = {"secretName": urls.name, "items": [{"key": urls.key, "path": "urls"}], "optional": True}
        volumes.append({"name": container_spec.volume_name("urls"), "secret": secret})
    if installation.reports.url:
        token = {
            "audience": names.TOKEN_AUDIENCE,
            "expirationSeconds": installation.reports.token_seconds,
            "path": "token",
        }
        sources: list[Body] = [{"serviceAccountToken": token}]
        if installation.reports.ca_pem:
            # From an annotation: a ConfigMap would have to exist in every namespace.
            field = {"fieldPath": f"metadata.annotations['{names.REPORT_CA}']"}
            sources.append({"downwardAPI": {"items": [{"path": "ca.crt", "fieldRef": field}]}})
        volumes.append({"name": container_spec.volume_name("token"), "projected": {"sources": sources}})
    return volumes


def report_annotations(installation: Installation) -> dict[str, str]:
    """Returns the annotations that a pod's loaders need to send reports."""
    pem = installation.reports.ca_pem
    return {names.REPORT_CA: _certificates_in_a_line(pem)} if installation.reports.url and pem else {}


def _certificates_in_a_line(pem: str) -> str:
    """Returns the base64 of each certificate, separated by spaces. ``kubectl describe`` shortens such a line."""
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", pem, re.DOTALL)
    return " ".join("".join(block.split()) for block in blocks) or pem
