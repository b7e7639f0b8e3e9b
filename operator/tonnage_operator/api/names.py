"""Names that are part of the API: group, kinds, annotations, labels, finalizer.

Changing one breaks manifests, dashboards or running pods.
"""

from __future__ import annotations

from typing import Final

GROUP: Final = "tonnage.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

MODEL_WEIGHTS_KIND: Final = "ModelWeights"
MODEL_WEIGHTS_PLURAL: Final = "modelweights"
NODE_CACHE_KIND: Final = "NodeCache"
NODE_CACHE_PLURAL: Final = "nodecaches"

GROUP_REVISION_KIND: Final = "GroupRevision"
GROUP_REVISION_PLURAL: Final = "grouprevisions"

FINALIZER: Final = f"{GROUP}/finalizer"
"""Keeps a deleted ``ModelWeights`` until its entries are evicted."""

FIELD_MANAGER: Final = "tonnage-operator"
"""Field manager of the operator's server-side apply."""

TOKEN_AUDIENCE: Final = GROUP
"""Audience of the projected tokens that authenticate reports."""

# Annotations with which a pod requests weights.
MODEL: Final = f"{GROUP}/model"
MODELS: Final = f"{GROUP}/models"
MOUNT_PATH: Final = f"{GROUP}/mount-path"
CONTAINERS: Final = f"{GROUP}/containers"
RANKS: Final = f"{GROUP}/ranks"
FORM: Final = f"{GROUP}/form"
SCHEDULING: Final = f"{GROUP}/scheduling"
ON_FAILURE: Final = f"{GROUP}/on-failure"
LOADER_CPU: Final = f"{GROUP}/loader-cpu"
LOADER_MEMORY: Final = f"{GROUP}/loader-memory"
ARTIFACTS: Final = f"{GROUP}/artifacts"
WAIT: Final = f"{GROUP}/wait"
VLLM_PLUGIN: Final = f"{GROUP}/vllm-plugin"
INJECT: Final = f"{GROUP}/inject"
SAME_REVISION: Final = f"{GROUP}/same-revision"
POD_ANNOTATIONS: Final = (
    MODEL, MODELS, MOUNT_PATH, CONTAINERS, RANKS, FORM, SCHEDULING, ON_FAILURE, LOADER_CPU, LOADER_MEMORY, ARTIFACTS,
    WAIT, VLLM_PLUGIN, INJECT, SAME_REVISION,
)  # fmt: skip
"""All annotations that users can set on pods."""

RETRY: Final = f"{GROUP}/retry"
TEMPLATE: Final = f"{GROUP}/template"
"""Digest of what a Job's pod needs to start, so that one that can't is replaced when that changes."""
"""On a ``ModelWeights``: each new value starts the next attempt of what failed at once. On Jobs: the value's digest."""

# Annotations of injected pods.
INJECTED: Final = f"{GROUP}/injected"
REVISION: Final = f"{GROUP}/revision"
ENTRIES: Final = f"{GROUP}/entries"
"""JSON list of the pod's held entries; see ``domain.observed.held_entries``."""

ADMISSION: Final = f"{GROUP}/admission"
"""Uid of the admission review of the pod."""
SIGNED_AT: Final = f"{GROUP}/signed-at"
"""On Jobs and injected pods: the API server's time when the operator signed them."""
SIGNATURE: Final = f"{GROUP}/signature"
"""On Jobs, their pods and injected pods: the operator wrote the other annotations; see ``domain.signing``."""

REPORT_CA: Final = f"{GROUP}/report-ca"
"""PEM of the CA of the report endpoint, for the loaders of this pod."""

# Labels of objects that the operator creates; all have the first one.
ROLE: Final = f"{GROUP}/loader"
"""``resolve``, ``load`` or ``cleanup`` on Jobs and their pods, ``injected`` on pods of users, ``peer`` on pods of the
chart's DaemonSet."""
MODEL_UID: Final = f"{GROUP}/model-uid"
NODE_HASH: Final = f"{GROUP}/node-hash"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGER: Final = "tonnage-operator"

ROLE_RESOLVE: Final = "resolve"
ROLE_LOAD: Final = "load"
ROLE_CLEANUP: Final = "cleanup"
ROLE_INJECTED: Final = "injected"
ROLE_PEER: Final = "peer"

# Annotations of Jobs, for values that are not valid in labels.
NODE: Final = f"{GROUP}/node"
CLAIM_PREFIX: Final = "pvc/"
"""Prefix of a claim's name where a node's name is expected."""
BOOT_ID: Final = f"{GROUP}/boot-id"
ATTEMPT: Final = f"{GROUP}/attempt"
BYTES: Final = f"{GROUP}/bytes"
"""Size of the revision that a load Job loads."""
CACHE_KEY: Final = f"{GROUP}/cache-key"
MEDIUM: Final = f"{GROUP}/medium"
MODEL_REF: Final = f"{GROUP}/model-ref"
SOURCE_HASH: Final = f"{GROUP}/source-hash"
ROUND: Final = f"{GROUP}/round"
CAUSE: Final = f"{GROUP}/cause"
"""Why a cleanup Job was created: ``Unreferenced``, ``Pressure``, ``Deleted``, ``Age`` or ``Size``."""

HOSTNAME_LABEL: Final = "kubernetes.io/hostname"
ZONE_LABEL: Final = "topology.kubernetes.io/zone"
OS_LABEL: Final = "kubernetes.io/os"

KUEUE_QUEUE: Final = "kueue.x-k8s.io/queue-name"
"""Label of Kueue: the queue that a Job waits for."""
SAFE_TO_EVICT_VOLUMES: Final = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
"""Annotation of the cluster autoscaler: volumes that don't keep it from removing the pod's node."""

LOADER_CONTAINER: Final = "tonnage-loader"
HOLDER_CONTAINER: Final = "tonnage-hold"
VOLUME_PREFIX: Final = "tonnage-"

DEFAULT_MOUNT_PATH: Final = "/models"
