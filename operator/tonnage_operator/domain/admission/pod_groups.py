"""Which pods form a group: all of them get one revision of a model.

What a pod belongs to is read from its controller and its labels alone, as these controllers set them at creation:

- **JobSet**: its Jobs' pod templates have ``jobset.sigs.k8s.io/jobset-name`` and ``…/jobset-uid``
  (``labelAndAnnotateObject`` in kubernetes-sigs/jobset, ``pkg/controllers/jobset_controller.go``). A TrainJob of
  Kubeflow's trainer runs as a JobSet.
- **LeaderWorkerSet**: the templates of leaders and workers have ``leaderworkerset.sigs.k8s.io/name`` and
  ``…/template-revision-hash``; leaders have ``…/worker-index: "0"``, workers ``…/group-index`` (``pkg/controllers`` in
  kubernetes-sigs/lws). Leaders are of a StatefulSet that lives as long as the LeaderWorkerSet; workers of one that
  lives as long as their leader. Labels that its webhook adds, such as ``…/group-key``, may not be there yet.
- **RayCluster** and the jobs of Kubeflow's training operator (``PyTorchJob``, ``MPIJob`` and so on) are their pods'
  controller themselves (``SetControllerReference`` in ``raycluster_controller.go`` of ray-project/kuberay;
  ``GenOwnerReference`` in kubeflow/training-operator, release 1).
- **StatefulSet**: ``controller-revision-hash`` names the revision of its template. A **ReplicaSet** or **Job** has one.

Where several apply, the outermost counts. Labels are whatever their author wrote: a false one moves a pod into another
group of its own namespace, and does nothing else, because a group's revision is kept in that namespace, with an owner
that the garbage collector looks up.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator.api import names
from tonnage_operator.api.grouprevision import GroupRevisionSpec
from tonnage_operator.domain.observed.model_weights import with_origin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tonnage_operator.api.base import Body
    from tonnage_operator.api.status import SeenRevision
    from tonnage_operator.domain.observed.model_weights import ModelWeights

_JOBSET: Final = "jobset.sigs.k8s.io/jobset-"
_JOBSET_VERSION: Final = "jobset.x-k8s.io/v1alpha2"
_LWS: Final = "leaderworkerset.sigs.k8s.io/"
_REVISION_HASH: Final = "controller-revision-hash"
_KUBEFLOW: Final = "kubeflow.org"
_SELF_CONTAINED: Final = {("apps", "ReplicaSet"), ("apps", "StatefulSet"), ("batch", "Job"), ("ray.io", "RayCluster")}
"""Controllers whose uid is the group, by API group and kind."""
_BUILT_IN: Final = {"apps", "batch"}
_MAX_TEXT: Final = 253
"""Characters of a name or uid; what is longer is none."""


@dataclass(frozen=True)
class PodGroup:
    """The group of a pod."""

    kind: str
    name: str
    """Of the object that the group belongs to, in the pod's namespace."""
    keys: tuple[str, ...]
    """Identities under which the group's revision may be kept; a new one is kept under the last."""
    owner: Mapping[str, str]
    """Owner reference: the revision is kept as long as this object exists."""
    is_named: bool = False
    """The identity is a name, which an earlier object may have had: what is kept must have the same owner."""

    @property
    def title(self) -> str:
        """Kind and name, for messages."""
        return f"{self.kind} {self.name}"


def find_group(metadata: Body) -> PodGroup | None:
    """Returns the group of a pod that is being created; None if it is of none.

    Args:
        metadata: The pod's, as its author wrote it.
    """
    owner = _controller(metadata)
    if owner is None:
        return None
    labels = metadata.get("labels") or {}
    labels = labels if isinstance(labels, dict) else {}
    group, kind = owner["apiVersion"].rpartition("/")[0], owner["kind"]
    if group in _BUILT_IN:
        owner["apiVersion"] = f"{group}/v1"  # the garbage collector looks up no other version
    if (group, kind) == ("batch", "Job") and (found := _jobset(labels)):
        return found
    if (group, kind) == ("apps", "StatefulSet") and (found := _leader_worker_set(labels, owner)):
        return found
    if (group, kind) not in _SELF_CONTAINED and group != _KUBEFLOW:
        return None
    revision = _text(labels, _REVISION_HASH) if kind == "StatefulSet" else ""
    return PodGroup(kind, owner["name"], (f"{kind}/{owner['uid']}/{revision}",), owner)


def _controller(metadata: Body) -> dict[str, str] | None:
    references = metadata.get("ownerReferences")
    for each in references if isinstance(references, list) else ():
        if isinstance(each, dict) and each.get("controller") is True:
            owner = {key: _text(each, key) for key in ("apiVersion", "kind", "name", "uid")}
            return owner if all(owner.values()) else None
    return None


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) and len(value) <= _MAX_TEXT else ""


def _jobset(labels: Mapping[str, Any]) -> PodGroup | None:
    name, uid = _text(labels, f"{_JOBSET}name"), _text(labels, f"{_JOBSET}uid")
    if not name or not uid:
        return None
    owner = {"apiVersion": _JOBSET_VERSION, "kind": "JobSet", "name": name, "uid": uid}
    return PodGroup("JobSet", name, (f"JobSet/{uid}",), owner)


def _leader_worker_set(labels: Mapping[str, Any], owner: dict[str, str]) -> PodGroup | None:
    name, revision = _text(labels, f"{_LWS}name"), _text(labels, f"{_LWS}template-revision-hash")
    if not name or not revision:
        return None
    whole = f"LeaderWorkerSet/{name}/{revision}"
    if _text(labels, f"{_LWS}worker-index") == "0":
        return PodGroup("LeaderWorkerSet", name, (whole,), owner, is_named=True)
    # Only where leaders don't request the model is there none for the whole set: its workers' StatefulSet ends with
    # the leader, and so does what it owns.
    return PodGroup("LeaderWorkerSet", name, (whole, f"{whole}/{owner['uid']}"), owner)


def object_names(group: PodGroup, model: str) -> tuple[str, ...]:
    """Returns the names of the ``GroupRevision`` objects that may have a group's revision of a model, in order.

    Args:
        group: The group.
        model: ``namespace/name`` of the ``ModelWeights``.
    """
    readable = re.sub(r"[^a-z0-9-]", "-", f"{group.kind}-{group.name}".lower())[:200].lstrip("-")
    digests = [hashlib.sha256(json.dumps([key, model]).encode()).hexdigest()[:32] for key in group.keys]
    return tuple(f"{readable}-{digest}".lstrip("-") for digest in digests)


def build_group_revision(group: PodGroup, name: str, namespace: str, weights: ModelWeights, seen: SeenRevision) -> Body:
    """Returns the object that keeps a revision for a group.

    Args:
        group: The group.
        name: One of ``object_names``.
        namespace: The pods' namespace. The list of objects doesn't leave that of the ``ModelWeights``.
        weights: The model.
        seen: Its revision.
    """
    spec = GroupRevisionSpec(
        group=group.title,
        model=weights.ref,
        revision=seen if namespace == weights.namespace else seen.model_copy(update={"objects": None}),
        source=weights.spec.source,
        files=weights.spec.files,
        credentials=weights.spec.credentials,
    )
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.GROUP_REVISION_KIND,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {names.MANAGED_BY: names.MANAGER},
            "ownerReferences": [dict(group.owner)],
        },
        "spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def has_other_owner(group: PodGroup, body: Body) -> bool:
    """Returns whether an object is what an earlier one of the same name has left, so that it will be removed."""
    owners = [each.get("uid") for each in body["metadata"].get("ownerReferences") or ()]
    return group.is_named and group.owner["uid"] not in owners


def weights_of_group(weights: ModelWeights, kept: GroupRevisionSpec) -> ModelWeights:
    """Returns the model with the source that has a group's revision, which may have been replaced since."""
    return with_origin(weights, kept.source, kept.files, kept.credentials)
