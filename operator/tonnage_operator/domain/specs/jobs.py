"""Builds the manifests of resolve, load and cleanup Jobs. Their names are deterministic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Delivery, Medium
from tonnage_operator.domain import naming, signing, units
from tonnage_operator.domain.specs import plans
from tonnage_operator.domain.specs.artifacts import add_capabilities
from tonnage_operator.domain.specs.loader_container import (
    CACHE_ROOT,
    TERMINATION_LOG,
    ContainerSpec,
    build_loader_container,
    entry_volume,
    host_path,
    memory_cache_bytes,
    report_annotations,
    security_context,
    support_volumes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage_operator.api.base import Body
    from tonnage_operator.api.placement import Toleration
    from tonnage_operator.api.status import SeenRevision
    from tonnage_operator.domain.installation import Installation, JobSettings
    from tonnage_operator.domain.observed.model_weights import ModelWeights
    from tonnage_operator.domain.observed.node import Node

_TERMINATION_LOG_ARGS: Final = ("--termination-log", TERMINATION_LOG)
_RESOLVE_DEADLINE: Final = 600
_CLEANUP_DEADLINE: Final = 600
_CLEANUP_RESOURCES: Final = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}
_WITHOUT_MESH: Final = {
    "sidecar.istio.io/inject": "false",
    "linkerd.io/inject": "disabled",
    "kuma.io/sidecar-injection": "disabled",
    "consul.hashicorp.com/connect-inject": "false",
}
"""Annotations of a Job's pod: the proxy of a mesh would not end when the loader ends, so the Job would not either."""
_LOAD_SLACK: Final = 300
"""Seconds added to the loader's own deadline, for scheduling and pulling the image."""


def _build_job(
    installation: Installation,
    *,
    name: str,
    namespace: str,
    labels: Body,
    annotations: Body,
    deadline: int,
    pod: Body,
    pod_annotations: Body | None = None,
) -> Body:
    settings = installation.jobs
    labels = {**settings.labels, names.MANAGED_BY: names.MANAGER, **labels}
    annotations = {**settings.annotations, **annotations}
    template_annotations = {**_WITHOUT_MESH, **annotations, **(pod_annotations or {})}
    if tolerations := [*(pod.get("tolerations") or ()), *map(_dump, settings.tolerations)]:
        pod = {**pod, "tolerations": tolerations}
    annotations[names.TEMPLATE] = _template_digest(pod, settings)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations},
        "spec": {
            # The controller retries, so that each failure is reported and a failing loader doesn't occupy its node.
            "backoffLimit": 0,
            "activeDeadlineSeconds": deadline,
            "template": {
                "metadata": {"labels": labels, "annotations": template_annotations},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": 10,
                    **pod,
                },
            },
        },
    }


def _template_digest(pod: Body, settings: JobSettings) -> str:
    """Returns a digest of what a pod and its queue depend on: all but the plan, which only a loader that runs reads."""
    containers = [
        {**each, "env": [variable for variable in each.get("env") or () if variable["name"] != "TONNAGE_PLAN"]}
        for each in pod["containers"]
    ]
    return naming.short_digest({**pod, "containers": containers}, settings.labels, settings.annotations)


def _signed(job: Body, installation: Installation) -> Body:
    """Signs a Job. Its pod has the same signature, which relates both."""
    signature = installation.signing.sign(*signing.job_parts(job["metadata"]))
    for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
        metadata["annotations"][names.SIGNATURE] = signature
    return job


def _owner_references(weights: ModelWeights) -> list[Body]:
    return [
        {
            "apiVersion": names.API_VERSION,
            "kind": names.MODEL_WEIGHTS_KIND,
            "name": weights.name,
            "uid": weights.uid,
            "controller": True,
            # Foreground deletion must not wait for Jobs: the finalizer decides when they are deleted.
            "blockOwnerDeletion": False,
        }
    ]


def _retry(weights: ModelWeights) -> Body:
    """Returns the annotation that records which value of the object's ``tonnage.dev/retry`` has been acted on."""
    return {names.RETRY: weights.retry} if weights.retry else {}


def _service_account(weights: ModelWeights, installation: Installation) -> str:
    credentials = weights.spec.credentials
    return (credentials and credentials.service_account_name) or installation.job_service_account


def _pull_secrets(installation: Installation) -> Body:
    secrets = [{"name": name} for name in installation.loader.pull_secrets]
    return {"imagePullSecrets": secrets} if secrets else {}


def build_resolve_job(weights: ModelWeights, installation: Installation, *, round_: str, attempt: int) -> Body:
    """Returns the Job that lists the source.

    Args:
        weights: The object.
        installation: Image and report settings.
        round_: Name of the resolve round; empty for the first one of a source.
        attempt: Counted from 1.
    """
    key = naming.resolve_key(weights.spec)
    container_spec = ContainerSpec(
        plan=plans.build_resolve_plan(weights, installation), arguments=("resolve", *_TERMINATION_LOG_ARGS)
    )
    pod = {
        "serviceAccountName": _service_account(weights, installation),
        "containers": [build_loader_container(weights, container_spec, installation, mounts_entry=False)],
        "volumes": support_volumes(weights, container_spec, installation),
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        **_any_linux_node(installation),
        **_tolerations(weights, installation),
        **_pull_secrets(installation),
    }
    job = _build_job(
        installation,
        name=naming.job_name(names.ROLE_RESOLVE, weights.name, weights.uid, key, round_, attempt),
        namespace=weights.namespace,
        labels={names.ROLE: names.ROLE_RESOLVE, names.MODEL_UID: weights.uid},
        annotations={
            names.MODEL_REF: weights.ref,
            names.SOURCE_HASH: key,
            names.ROUND: round_,
            names.ATTEMPT: str(attempt),
            **_retry(weights),
        },
        deadline=_RESOLVE_DEADLINE,
        pod=pod,
        pod_annotations=report_annotations(installation),
    )
    job["metadata"]["ownerReferences"] = _owner_references(weights)
    return _signed(job, installation)


def _dump(toleration: Toleration) -> Body:
    return toleration.model_dump(mode="json", by_alias=True, exclude_none=True)


def _tolerations(weights: ModelWeights, installation: Installation, node: Node | None = None) -> Body:
    """Returns the object's allowed tolerations, as a part of a pod's spec; empty if it has none.

    One without a key tolerates everything, so the allowed taints of the Job's node replace it. The startup taints that
    wait for the object are tolerated: nothing else would ever run on a cluster's first nodes.
    """
    startup_taints = installation.gate.taints_of(weights.spec.placement.gate)
    tolerations: list[Body] = [{"key": key, "operator": "Exists"} for key in sorted(startup_taints)]
    for each in weights.spec.placement.tolerations or ():
        if each.key is not None:
            if installation.prewarm.allows_taint(each.key):
                tolerations.append(_dump(each))
            continue
        tolerations += [
            {"key": taint.key, "operator": "Exists", "effect": taint.effect}
            for taint in (node.taints if node else ())
            if installation.prewarm.allows_taint(taint.key) and each.effect in {None, taint.effect}
        ]
    return {"tolerations": tolerations} if tolerations else {}


def _any_linux_node(installation: Installation, node_selector: Mapping[str, str] | None = None) -> Body:
    """Returns a pod's constraints to nodes on which loaders can run; nodes without the label of an OS count, too."""
    requirement = {"key": names.OS_LABEL, "operator": "NotIn", "values": ["windows"]}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}
    selector = {**(node_selector or {}), **installation.jobs.node_selector}
    return {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}},
        **({"nodeSelector": selector} if selector else {}),
    }


def _node_affinity(node: str) -> Body:
    """Returns affinity to one node. Unlike ``nodeName``, the scheduler then checks resources and taints."""
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    terms = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def build_load_job(
    weights: ModelWeights, seen: SeenRevision, installation: Installation, *, node: Node | None, attempt: int
) -> Body:
    """Returns the Job that loads a revision onto a node, or into the object's claim if ``node`` is None."""
    key = weights.key(seen.revision, installation)
    medium = weights.medium(installation)
    container_spec = ContainerSpec(
        plan=plans.build_load_plan(weights, seen, installation),
        arguments=("load", "--cache", CACHE_ROOT, *_TERMINATION_LOG_ARGS, "--progress", "off"),
        memory_bytes=memory_cache_bytes(weights, seen.total_bytes, installation),
    )
    pod: Body = {
        "serviceAccountName": _service_account(weights, installation),
        "containers": [build_loader_container(weights, container_spec, installation)],
        "volumes": [
            entry_volume(weights, container_spec, installation, key=key, size=seen.total_bytes),
            *support_volumes(weights, container_spec, installation),
        ],
        **_tolerations(weights, installation, node),
        **_pull_secrets(installation),
    }
    target = node.name if node else f"{names.CLAIM_PREFIX}{weights.spec.cache.claim_name}"
    if node:
        pod["affinity"] = _node_affinity(node.name)
    else:
        pod["securityContext"] = {"fsGroup": installation.loader.unprivileged_uid}
        pod |= _any_linux_node(installation, weights.spec.placement.node_selector)
    boot = node.boot_id if node and medium is Medium.MEMORY else ""
    job = _build_job(
        installation,
        name=naming.job_name(names.ROLE_LOAD, weights.name, weights.uid, key, medium.value, target, boot, attempt),
        namespace=weights.namespace,
        labels={
            names.ROLE: names.ROLE_LOAD,
            names.MODEL_UID: weights.uid,
            names.NODE_HASH: naming.node_hash(target),
        },
        annotations={
            names.MODEL_REF: weights.ref,
            names.CACHE_KEY: key,
            names.MEDIUM: medium.value,
            names.NODE: target,
            names.BOOT_ID: boot,
            names.REVISION: seen.revision,
            names.BYTES: str(seen.total_bytes),
            names.ATTEMPT: str(attempt),
            **_retry(weights),
        },
        deadline=int(units.parse_duration(weights.spec.loader.timeout)) + _LOAD_SLACK,
        pod=pod,
        pod_annotations=report_annotations(installation),
    )
    job["metadata"]["ownerReferences"] = _owner_references(weights)
    return _signed(job, installation)


def _cleanup_container(installation: Installation, delivery: Delivery, entries: list[str], mount_path: str) -> Body:
    return {
        "name": names.LOADER_CONTAINER,
        "image": installation.loader.image,
        "imagePullPolicy": installation.loader.pull_policy,
        "command": ["tonnage"],
        # An earlier attempt may have removed the entry without its result being observed.
        "args": ["rm", "--cache", CACHE_ROOT, "--ignore-not-found", *entries],
        "resources": _CLEANUP_RESOURCES,
        "securityContext": security_context(delivery, installation),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "tonnage-cache", "mountPath": mount_path}],
    }


def build_cleanup_job(
    installation: Installation,
    *,
    key: str,
    medium: Medium,
    node: Node,
    attempt: int,
    uid: str,
    model_ref: str,
    cause: str,
) -> Body:
    """Returns the Job that evicts one entry from a node. It needs no credentials and runs in the operator's namespace.

    Args:
        installation: Image, host paths, namespace.
        key: The entry's cache key.
        medium: The entry's medium.
        node: The node.
        attempt: Counted from 1.
        uid: Uid of the ``NodeCache``. A recreated node with the same name gets Jobs with other names.
        model_ref: The object that last referred to the entry, for information.
        cause: ``Unreferenced`` or ``Pressure``; of artifacts also ``Age`` or ``Size``.

    Raises:
        ValueError: The key is not one of an entry.
    """
    entry = naming.entry_of(key)
    path = host_path(installation, medium, key)
    container = _cleanup_container(installation, Delivery.HOST_PATH, [entry], f"{CACHE_ROOT}/{entry}")
    if naming.is_artifacts_key(key):
        add_capabilities(container)
    pod: Body = {
        "serviceAccountName": installation.cleanup_service_account,
        "containers": [container],
        "volumes": [{"name": "tonnage-cache", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}],
        "affinity": _node_affinity(node.name),
        **_pull_secrets(installation),
    }
    if installation.cleanup_tolerate_all:
        pod["tolerations"] = [{"operator": "Exists"}]
    job = _build_job(
        installation,
        name=naming.job_name(names.ROLE_CLEANUP, entry, uid, node.name, key, medium.value, node.boot_id, attempt),
        namespace=installation.namespace,
        labels={names.ROLE: names.ROLE_CLEANUP, names.NODE_HASH: naming.node_hash(node.name)},
        annotations={
            names.MODEL_REF: model_ref,
            names.CACHE_KEY: key,
            names.MEDIUM: medium.value,
            names.NODE: node.name,
            names.BOOT_ID: node.boot_id,
            names.CAUSE: cause,
            names.ATTEMPT: str(attempt),
        },
        deadline=_CLEANUP_DEADLINE,
        pod=pod,
    )
    return _signed(job, installation)


def build_pvc_cleanup_job(
    weights: ModelWeights, installation: Installation, *, keys: tuple[str, ...], attempt: int, cause: str
) -> Body:
    """Returns the Job that removes entries from the object's claim. It needs no credentials.

    Args:
        weights: The object.
        installation: Image and user IDs.
        keys: Cache keys of the entries.
        attempt: Counted from 1.
        cause: ``Unreferenced`` or ``Deleted``.
    """
    claim = weights.spec.cache.claim_name
    entries = sorted(naming.entry_of(key) for key in keys)
    pod: Body = {
        "serviceAccountName": installation.job_service_account,
        "containers": [_cleanup_container(installation, Delivery.CLAIM, entries, CACHE_ROOT)],
        "volumes": [{"name": "tonnage-cache", "persistentVolumeClaim": {"claimName": claim}}],
        "securityContext": {"fsGroup": installation.loader.unprivileged_uid},
        **_any_linux_node(installation, weights.spec.placement.node_selector),
        **_tolerations(weights, installation),
        **_pull_secrets(installation),
    }
    target = f"{names.CLAIM_PREFIX}{claim}"
    key = ",".join(sorted(keys))
    job = _build_job(
        installation,
        name=naming.job_name(names.ROLE_CLEANUP, weights.name, weights.uid, cause, target, key, attempt),
        namespace=weights.namespace,
        labels={
            names.ROLE: names.ROLE_CLEANUP,
            names.MODEL_UID: weights.uid,
            names.NODE_HASH: naming.node_hash(target),
        },
        annotations={
            names.MODEL_REF: weights.ref,
            names.CACHE_KEY: key,
            names.MEDIUM: Medium.DISK.value,
            names.NODE: target,
            names.CAUSE: cause,
            names.ATTEMPT: str(attempt),
            **_retry(weights),
        },
        deadline=_CLEANUP_DEADLINE,
        pod=pod,
    )
    job["metadata"]["ownerReferences"] = _owner_references(weights)
    return _signed(job, installation)
