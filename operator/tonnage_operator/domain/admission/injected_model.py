"""A requested model with the revision that a pod gets: the one in use, or the one of the pod's group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tonnage_operator.api.placement import Scheduling

if TYPE_CHECKING:
    from tonnage_operator.api.status import SeenRevision
    from tonnage_operator.domain.admission.node_affinity import ColdNodes
    from tonnage_operator.domain.admission.pod_request import PodRequest, RequestedModel
    from tonnage_operator.domain.observed.model_weights import ModelWeights


class AdmissionDenied(Exception):
    """The pod's request can't be fulfilled. The message is shown to the user who applied the pod."""


@dataclass(frozen=True)
class InjectedModel:
    """A requested model that the pod may use, with its revision."""

    requested: RequestedModel
    weights: ModelWeights
    seen: SeenRevision
    warm: tuple[str, ...] = ()
    """Host names of warm nodes."""
    is_warmed: bool = True
    """The object's Jobs load the pod's entry onto nodes; otherwise only pods do."""
    cold: ColdNodes | None = None
    """Nodes that are not warm; None if they aren't known, so that pods can only require warm nodes by name."""
    group: str = ""
    """Name of the ``GroupRevision`` that keeps the revision for the pod's group; empty if none does."""

    @property
    def lists_objects(self) -> bool:
        """Whether the pod's plan has the list of objects.

        The source shows those of the revision in use. An earlier revision is read as long as its objects exist.
        """
        return self.is_earlier and self.seen.objects is not None

    @property
    def is_earlier(self) -> bool:
        """Whether another revision than the pod's is in use."""
        current = self.weights.current_revision
        return current is None or current.revision != self.seen.revision

    def scheduling(self, request: PodRequest) -> Scheduling:
        """Whether the pod prefers or requires warm nodes.

        The object's ``Require`` is for entries that its Jobs load: for others, no node would ever be the first.
        """
        wanted = self.weights.spec.placement.scheduling
        if wanted is Scheduling.REQUIRE and not self.is_warmed:
            wanted = Scheduling.PREFER
        return request.scheduling or wanted


def resolve_injected_model(
    requested: RequestedModel,
    weights: ModelWeights,
    warm: tuple[str, ...],
    *,
    is_warmed: bool = True,
    cold: ColdNodes | None = None,
    kept: SeenRevision | None = None,
    group: str = "",
) -> InjectedModel:
    """Returns the model with its revision in use, or with the one that the pod's group has.

    Args:
        requested: What the pod asks for.
        weights: The object.
        warm: Host names of nodes on which the pod's entry is ready.
        is_warmed: Whether the object's Jobs load that entry.
        cold: The nodes that the object selects and on which it isn't ready; None if they aren't known.
        kept: The revision of the pod's group, if it has one. ``weights`` has the source of that revision.
        group: Name of the ``GroupRevision`` that keeps it.

    Raises:
        AdmissionDenied: The model is being deleted or not resolved. The pod's controller creates the pod again later.
    """
    if weights.deleting:
        raise AdmissionDenied(f"ModelWeights {weights.ref} is being deleted.")
    seen, expected = kept or weights.current_revision, weights.spec.revision.expected_digest
    if kept and expected and kept.digest != expected:
        raise AdmissionDenied(
            f"The pod's group keeps {kept.revision} of ModelWeights {weights.ref}, which spec.revision.expectedDigest "
            f"rejects: give the pod's controller a new template, or delete GroupRevision {group}."
        )
    required = {"Accepted"} if kept else {"Accepted", "Resolved"}
    blocked = [each for each in weights.status.conditions or () if each.type in required]
    problem = next((each for each in blocked if each.status.value == "False"), None)
    if seen is None or problem:
        why = f"{problem.reason}: {problem.message}" if problem else "its source has not been listed yet."
        raise AdmissionDenied(f"ModelWeights {weights.ref} is not resolved: {why} Pods are admitted once it is Ready.")
    return InjectedModel(requested, weights, seen, warm, is_warmed, cold, group if kept else "")
