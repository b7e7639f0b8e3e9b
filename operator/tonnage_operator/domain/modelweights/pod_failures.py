"""Failures of loaders in pods that use a ``ModelWeights``. No Job reports them, so they are read from the pods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tonnage.errors import Reason
from tonnage_operator.api.modelweights import FromNamespaces
from tonnage_operator.api.status import NodeFailure
from tonnage_operator.domain.observed import job_results

if TYPE_CHECKING:
    from tonnage_operator.domain.modelweights.snapshot import Snapshot
    from tonnage_operator.domain.observed.held_entries import HeldEntry
    from tonnage_operator.domain.observed.job_results import Failure
    from tonnage_operator.domain.observed.pod import LoaderStatus, Pod


@dataclass(frozen=True)
class PodFailures:
    """The failing pods of an object."""

    failures: tuple[NodeFailure, ...] = ()
    """The newest failure on each node, newest first."""
    pods: int = 0
    """Number of failing pods."""
    source_changed: NodeFailure | None = None
    """A failure because the source no longer has the revision in use: every new pod will have it."""


def find_pod_failures(snapshot: Snapshot) -> PodFailures:
    """Returns the failures of loaders that are not ready since.

    A pod that has ended counts until a later one is ready. Pods of other namespaces count if they may use the object.
    """
    weights = snapshot.weights
    shared = weights.spec.access.allowed_namespaces.from_ is not FromNamespaces.SAME
    pods = [pod for pod in snapshot.consumers if pod.namespace == weights.namespace or shared]
    ready_since = max((pod.created for pod in pods if _is_ready(pod, weights.uid)), default="")
    in_use = weights.current_revision.revision if weights.current_revision else ""
    newest: dict[str, NodeFailure] = {}
    failing: set[str] = set()
    changed: NodeFailure | None = None
    for pod in pods:
        if pod.deleting or (pod.is_terminal and pod.created <= ready_since):
            continue
        for held, loader in _loaders_of(pod, weights.uid):
            failure = _find_failure(pod, loader, held.bytes)
            if failure is None:
                continue
            failing.add(pod.uid)
            found = _describe(pod, loader, failure)
            if held.group and held.revision != in_use:
                found = _of_group(found, held)
            newest[found.node] = max(newest.get(found.node, found), found, key=lambda each: (each.time, each.pod or ""))
            own = held.revision == in_use and pod.namespace == weights.namespace
            if failure.reason == Reason.SOURCE_CHANGED and own and pod.created > ready_since:
                changed = found
    ordered = sorted(newest.values(), key=lambda each: (each.time, each.node), reverse=True)
    return PodFailures(tuple(ordered), len(failing), changed)


def _loaders_of(pod: Pod, uid: str) -> list[tuple[HeldEntry, LoaderStatus]]:
    by_name = {each.name: each for each in pod.loaders}
    held_entries = (held for held in pod.held_entries if held.uid == uid and held.container in by_name)
    return [(held, by_name[held.container]) for held in held_entries]


def _is_ready(pod: Pod, uid: str) -> bool:
    loaders = _loaders_of(pod, uid)
    return bool(loaders) and all(loader.ready for _, loader in loaders)


def _find_failure(pod: Pod, loader: LoaderStatus, size: int) -> Failure | None:
    if loader.ready and not (loader.terminated and pod.is_terminal):
        report = job_results.termination_report(loader)
        optional_failed = report is not None and bool(report.reason) and loader.restarts == 0
        return job_results.loader_failure(pod, loader, size) if optional_failed else None
    return job_results.loader_start_failure(loader) or job_results.loader_failure(pod, loader, size)


def _of_group(failure: NodeFailure, held: HeldEntry) -> NodeFailure:
    """Returns the failure of a pod whose group has an earlier revision, with how to move the group on."""
    message = (
        f"{failure.message} The pod's group keeps {held.revision}. To have it use the revision in use, give its "
        "controller a new template (kubectl rollout restart), or create its controller again."
    )
    return failure.model_copy(update={"message": message})


def _describe(pod: Pod, loader: LoaderStatus, failure: Failure) -> NodeFailure:
    ended = loader.terminated.finished_time if loader.terminated else ""
    return NodeFailure(
        node=pod.node or "unscheduled",
        reason=failure.reason,
        message=failure.message,
        attempts=loader.restarts + 1,
        time=ended or pod.created,
        pod=f"{pod.namespace}/{pod.name}",
    )
