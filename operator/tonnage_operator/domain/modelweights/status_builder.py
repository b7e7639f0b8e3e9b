"""Builds the status of a ``ModelWeights``. Condition messages contain a remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage import contract
from tonnage.contract.sizes import human_bytes
from tonnage.errors import Reason
from tonnage_operator.api import names
from tonnage_operator.api.base import ConditionStatus
from tonnage_operator.api.modelweights import Delivery
from tonnage_operator.api.placement import PrewarmMode, Scheduling
from tonnage_operator.api.status import MAX_FAILURES, Consumers, ModelWeightsStatus, NodeCounts
from tonnage_operator.domain import conditions
from tonnage_operator.domain.conditions import MESSAGE_LIMIT, Event, Observation
from tonnage_operator.domain.gate.advice import find_gate_condition
from tonnage_operator.domain.modelweights.load_notes import find_load_notes, find_verified_by, with_headers_digest
from tonnage_operator.domain.modelweights.pod_failures import find_pod_failures
from tonnage_operator.domain.modelweights.rollout import describe_rollout, next_rollout
from tonnage_operator.domain.observed.job_results import Failure
from tonnage_operator.domain.observed.model_weights import describe_source
from tonnage_operator.domain.observed.remedies import remedy
from tonnage_operator.domain.reasons import ConditionReason, FailureReason
from tonnage_operator.domain.specs import plans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage_operator.api.status import NodeFailure, Rollout
    from tonnage_operator.domain.installation import Installation
    from tonnage_operator.domain.modelweights.loads import LoadDecision
    from tonnage_operator.domain.modelweights.pod_failures import PodFailures
    from tonnage_operator.domain.modelweights.revisions import Resolution
    from tonnage_operator.domain.modelweights.snapshot import Snapshot
    from tonnage_operator.domain.observed.model_weights import ModelWeights
    from tonnage_operator.domain.observed.pod import Pod


def find_spec_problem(weights: ModelWeights, installation: Installation) -> Failure | None:
    """Returns why this installation can't serve the object, or None."""
    medium = weights.medium(installation)
    if weights.spec.cache.delivery is Delivery.HOST_PATH and medium not in installation.media:
        offered = ", ".join(sorted(each.value for each in installation.media)) or "none"
        return Failure(
            ConditionReason.MEDIUM_NOT_CONFIGURED,
            f"spec.cache.medium is {medium.value}, but this installation has no host path for it (available: "
            f"{offered}). Choose another medium or delivery, or ask the administrator.",
        )
    size = len(contract.encode_plan(plans.build_resolve_plan(weights, installation)))
    if size > plans.MAX_PLAN_BYTES:
        return Failure(
            ConditionReason.SPEC_TOO_LARGE,
            f"spec.source and spec.files need {size >> 10} KiB in a loader's plan; the limit is "
            f"{plans.MAX_PLAN_BYTES >> 10} KiB. Use prefix instead of keys, or urlsFrom instead of urls.",
        )
    return None


def build_rejected_status(snapshot: Snapshot, problem: Failure) -> ModelWeightsStatus:
    """Returns the status of an object that can't be served. Revisions and counts are kept."""
    weights = snapshot.weights
    observed = (
        Observation("Accepted", status=False, reason=problem.reason, message=problem.message),
        Observation("Ready", status=False, reason=problem.reason, message=problem.message),
        Observation(
            "Progressing", status=False, reason=problem.reason, message="Reconciliation is paused until this is fixed."
        ),
    )
    return weights.status.model_copy(
        update={
            "observed_generation": weights.generation,
            "source": describe_source(weights.spec.source),
            "progress": None,
            "progress_summary": None,
            "conditions": conditions.merge(
                weights.status.conditions or (), observed, now=snapshot.timestamp, generation=weights.generation
            ),
        }
    )


def _with_remedy(failure: Failure) -> str:
    sentence = remedy(failure.reason, failure.message)
    return f"{failure.message} {sentence}".strip() if sentence and sentence not in failure.message else failure.message


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _are_warm(count: int) -> str:
    return f"{_nodes(count)} {'is' if count == 1 else 'are'} warm"


def _describe_next_attempt(weights: ModelWeights, time: str) -> str:
    """Returns when the next attempt comes, and how to start it at once; empty if no attempt is waiting."""
    if not time:
        return ""
    command = f"kubectl annotate mw -n {weights.namespace} {weights.name} --overwrite {names.RETRY}=$(date +%s)"
    return f" Next attempt at {time}; to start it now: {command}"


def _resolved_condition(weights: ModelWeights, resolution: Resolution, notes: tuple[str, ...]) -> Observation:
    problem, revision = resolution.problem, resolution.revisions.resolved
    if (
        resolution.is_current
        and revision
        and (problem is None or problem.reason not in {Reason.DIGEST_MISMATCH, FailureReason.PIN_UNKNOWN})
    ):
        size = human_bytes(revision.total_bytes, "column")
        message = f"{revision.object_count} objects, {size}, {revision.digest}."
        if notes:
            message += f" {notes[0]}" + (f" And {len(notes) - 1} more in status.notes." if len(notes) > 1 else "")
        if problem:
            message += f" The last check of the source failed: {problem.reason}: {problem.message}"
        return Observation("Resolved", status=True, reason=ConditionReason.RESOLVED, message=message)
    if problem:
        text = _with_remedy(problem)
        if resolution.attempts:
            text += f" This was attempt {resolution.attempts}." if not resolution.running else ""
            text += _describe_next_attempt(weights, resolution.next_attempt_time)
        if weights.spec.suspend and not resolution.running:
            text += f" {_how_to_resume(weights)}"
        return Observation("Resolved", status=False, reason=problem.reason, message=text)
    if weights.spec.suspend and not resolution.running:
        message = f"The source has not been listed, because spec.suspend is set. {_how_to_resume(weights)}"
        return Observation("Resolved", status=False, reason=ConditionReason.SUSPENDED, message=message)
    for before in weights.status.conditions or ():
        again = resolution.attempts > 1 and before.status is ConditionStatus.FALSE
        if before.type == "Resolved" and again and before.observed_generation == weights.generation:
            return Observation("Resolved", status=False, reason=before.reason, message=before.message)
    return Observation(
        "Resolved", status=False, reason=ConditionReason.RESOLVING, message="A Job is listing the source."
    )


def _how_to_resume(weights: ModelWeights) -> str:
    patch = '{"spec":{"suspend":false}}'
    return f"To continue: kubectl patch mw -n {weights.namespace} {weights.name} --type=merge -p '{patch}'"


def _progressing_condition(
    weights: ModelWeights, resolution: Resolution, load: LoadDecision, rollout: Rollout | None
) -> Observation:
    name = "Progressing"
    if load.loading or load.apply:
        count = load.loading + len(load.apply)
        reason = ConditionReason.UPDATING if rollout else ConditionReason.LOADING
        what = resolution.target or resolution.revisions.resolved
        message = f"{_nodes(count)} {'is' if count == 1 else 'are'} loading {what.revision if what else ''}."
        if load.holders:
            message += f" {_nodes(load.holders)} {'serves' if load.holders == 1 else 'serve'} them what they have."
        message += f" {describe_rollout(rollout, load.nodes)}" if rollout else ""
        return Observation(name, status=True, reason=reason, message=message)
    if weights.spec.suspend:
        return Observation(
            name,
            status=False,
            reason=ConditionReason.SUSPENDED,
            message=f"spec.suspend is set: no new Jobs are started. {_how_to_resume(weights)}",
        )
    if resolution.running:
        return Observation(name, status=True, reason=ConditionReason.RESOLVING, message="A Job is listing the source.")
    return _idle_condition(resolution, load, rollout)


def _idle_condition(resolution: Resolution, load: LoadDecision, rollout: Rollout | None) -> Observation:
    """Returns the condition ``Progressing`` of an object for which no Job runs."""
    name = "Progressing"
    if load.too_large:
        return Observation(name, status=False, reason=ConditionReason.ENTRY_TOO_LARGE, message=load.too_large)
    if load.waiting:
        message = f"{_nodes(len(load.waiting))} {'has' if len(load.waiting) == 1 else 'have'} no room."
        if rollout and not rollout.in_use:
            message += (
                f" {describe_rollout(rollout, load.nodes)} Where nodes have no room for both revisions, raise the "
                "capacity, or set spec.revision.rollout.maxUnavailable to 100%: then new pods get the new revision at "
                "once, and nodes load it when their pods with the previous one have ended."
            )
        return Observation(name, status=False, reason=ConditionReason.WAITING_FOR_SPACE, message=message)
    if rollout and not rollout.in_use and load.failures:
        first = load.failures[0]
        why = _with_remedy(Failure(first.reason, first.message))
        message = (
            f"{describe_rollout(rollout, load.nodes)} {first.node}: {first.reason}: {why} To go on without such nodes, "
            "raise spec.revision.rollout.maxUnavailable."
        )
        return Observation(name, status=False, reason=ConditionReason.ROLLOUT_BLOCKED, message=message)
    if load.backing_off or (resolution.problem and resolution.requeue_after is not None):
        return Observation(
            name, status=False, reason=ConditionReason.BACKOFF, message="Waiting to retry after a failure."
        )
    if rollout:
        message = describe_rollout(rollout, load.nodes)
        return Observation(name, status=True, reason=ConditionReason.UPDATING, message=message)
    return Observation(name, status=False, reason=ConditionReason.IDLE, message="Nothing to do.")


def _warm_condition(weights: ModelWeights, resolution: Resolution, load: LoadDecision) -> Observation:
    name, desired = "Warm", len(load.desired)
    if not resolution.is_current or resolution.revisions.resolved is None:
        return Observation(
            name, status=False, reason=ConditionReason.NOT_RESOLVED, message="The source has not been resolved."
        )
    if load.too_large and not resolution.staged and load.warm < max(1, desired):
        return Observation(name, status=False, reason=ConditionReason.ENTRY_TOO_LARGE, message=load.too_large)
    if weights.spec.placement.prewarm is PrewarmMode.NONE:
        message = "spec.placement.prewarm is None: the first pod on a node loads the weights."
        return Observation(name, status=True, reason=ConditionReason.NOTHING_TO_PREWARM, message=message)
    if not desired:
        message = (
            "No node matches spec.placement and the chart's prewarm.nodeSelector: check nodeSelector and nodeAffinity."
        )
        if load.matching:
            found = "1 node matches, but it is" if load.matching == 1 else f"{load.matching} nodes match, but all are"
            has = "has" if load.matching == 1 else "have"
            message = (
                f"{found} cordoned, not ready, or {has} taints that are not tolerated, or that the administrator "
                "doesn't allow to tolerate (prewarm.allowedTaints)."
            )
        return Observation(name, status=False, reason=ConditionReason.NO_MATCHING_NODES, message=message)
    return _prewarm_condition(weights, load, desired)


def _prewarm_condition(weights: ModelWeights, load: LoadDecision, desired: int) -> Observation:
    name, asked = "Warm", weights.spec.placement.count or 0
    if load.warm == desired and desired >= asked:
        message = "The desired node is warm." if desired == 1 else f"All {desired} nodes are warm."
        return Observation(name, status=True, reason=ConditionReason.ALL_NODES_WARM, message=message)
    if load.failures:
        first = load.failures[0]
        why = _with_remedy(Failure(first.reason, first.message))
        why += _describe_next_attempt(weights, first.next_attempt_time or "")
        message = f"{load.warm} of {_are_warm(desired)}. {first.node}: {first.reason}: {why}"
        return Observation(name, status=False, reason=first.reason, message=message)
    if load.waiting:
        node, why = min(load.waiting.items())
        more = f" {len(load.waiting) - 1} more nodes have no room." if len(load.waiting) > 1 else ""
        message = f"{load.warm} of {_are_warm(desired)}. {why}{more} The load begins when there is room on {node}."
        return Observation(name, status=False, reason=ConditionReason.WAITING_FOR_SPACE, message=message)
    if load.warm == desired:
        message = f"{_are_warm(desired)}, but spec.placement.count is {asked} and no more nodes match."
        return Observation(name, status=False, reason=ConditionReason.TOO_FEW_NODES, message=message)
    return Observation(
        name, status=False, reason=ConditionReason.PARTIALLY_WARM, message=f"{load.warm} of {_are_warm(desired)}."
    )


def _ready_condition(
    weights: ModelWeights, resolved: Observation, warm: Observation, load: LoadDecision, pods: PodFailures
) -> Observation:
    name, spec = "Ready", weights.spec.placement
    if not resolved.status:
        return Observation(name, status=False, reason=resolved.reason, message=resolved.message)
    lazy = spec.prewarm is PrewarmMode.NONE
    own = [each for each in pods.failures if (each.pod or "").startswith(f"{weights.namespace}/")]
    if blocking := pods.source_changed or (own[0] if own and lazy and not load.warm_anywhere else None):
        return _not_ready_for_pods(blocking)
    if load.warm or load.warm_anywhere:
        return Observation(
            name,
            status=True,
            reason=ConditionReason.WARM,
            message="Pods on warm nodes can use the weights without a load.",
        )
    if not lazy or warm.reason == ConditionReason.ENTRY_TOO_LARGE:
        return Observation(name, status=False, reason=warm.reason, message=warm.message)
    if spec.scheduling is Scheduling.REQUIRE:
        message = "spec.placement.scheduling is Require, no node is warm, and prewarm is None: no pod can start. "
        return Observation(name, status=False, reason=ConditionReason.NO_WARM_NODE, message=message + "Set prewarm.")
    message = "The first pod on a node loads the weights."
    return Observation(name, status=True, reason=ConditionReason.LOADED_ON_DEMAND, message=message)


def _not_ready_for_pods(failure: NodeFailure) -> Observation:
    why = _with_remedy(Failure(failure.reason, failure.message))
    message = f"The loader of pod {failure.pod} on {failure.node} failed: {why}"
    return Observation("Ready", status=False, reason=failure.reason, message=message)


def _degraded_condition(load: LoadDecision, pods: PodFailures) -> Observation:
    if not load.failures and pods.failures:
        first = pods.failures[0]
        why = _with_remedy(Failure(first.reason, first.message))
        more = f" Loaders of {pods.pods} pods have failed." if pods.pods > 1 else ""
        message = f"The loader of pod {first.pod} on {first.node} failed: {first.reason}: {why}{more}"
        return Observation("Degraded", status=True, reason=ConditionReason.POD_LOAD_FAILED, message=message)
    if not load.failures:
        return Observation(
            "Degraded",
            status=False,
            reason=ConditionReason.ALL_NODES_HEALTHY,
            message="No node's last load failed, and no pod's loader fails.",
        )
    named = ", ".join(f"{each.node} ({each.reason})" for each in load.failures[:5])
    more = f" and {len(load.failures) - 5} more" if len(load.failures) > 5 else ""
    return Observation(
        "Degraded", status=True, reason=ConditionReason.NODE_LOAD_FAILED, message=f"Loads failed on {named}{more}."
    )


def _update_available_condition(resolution: Resolution) -> Observation:
    available = resolution.revisions.available
    if available is None:
        return Observation(
            "UpdateAvailable", status=False, reason=ConditionReason.UP_TO_DATE, message="No newer revision is known."
        )
    message = f"The source has {available.revision}. Set spec.revision.pin to it to use it."
    if resolution.target and resolution.target.revision == available.revision:
        message = f"The source has {available.revision}. It will be used once it is loaded."
    return Observation("UpdateAvailable", status=True, reason=ConditionReason.SOURCE_CHANGED, message=message)


def _consumers(pods: Sequence[Pod], failing: int) -> Consumers:
    alive = [pod for pod in pods if not pod.is_terminal]
    return Consumers(pods=len(alive), namespaces=len({pod.namespace for pod in alive}), failing=failing)


def _failures(load: LoadDecision, pods: PodFailures) -> tuple[NodeFailure, ...]:
    """Returns one failure for each node, those of load Jobs first."""
    of_jobs = {each.node for each in load.failures}
    return (*load.failures, *(each for each in pods.failures if each.node not in of_jobs))[:MAX_FAILURES]


def _warm_summary(weights: ModelWeights, load: LoadDecision) -> str:
    if weights.spec.placement.prewarm is PrewarmMode.NONE:
        return str(load.warm_anywhere)
    return f"{load.warm}/{len(load.desired)}"


def build_status(snapshot: Snapshot, resolution: Resolution, load: LoadDecision) -> ModelWeightsStatus:
    """Returns the complete status."""
    weights, revisions = snapshot.weights, resolution.revisions
    pods = find_pod_failures(snapshot)
    rollout = next_rollout(weights, resolution, load.nodes, now=snapshot.timestamp)
    notes = find_load_notes(snapshot, revisions.resolved)
    resolved = _resolved_condition(weights, resolution, notes)
    warm = _warm_condition(weights, resolution, load)
    observed = (
        Observation("Accepted", status=True, reason=ConditionReason.ACCEPTED, message="The spec is valid."),
        resolved,
        _progressing_condition(weights, resolution, load, rollout),
        warm,
        _ready_condition(weights, resolved, warm, load, pods),
        _degraded_condition(load, pods),
        _update_available_condition(resolution),
        *filter(None, (find_gate_condition(weights.spec.placement, snapshot.installation),)),
    )
    percent = f"{load.progress.percent}%" if load.progress and load.progress.percent >= 0 else None
    return ModelWeightsStatus(
        observed_generation=weights.generation,
        resolved=with_headers_digest(snapshot, revisions.resolved),
        available=with_headers_digest(snapshot, revisions.available),
        history=revisions.history or None,
        rollout=rollout,
        last_checked_time=revisions.last_checked_time or None,
        medium=weights.medium(snapshot.installation),
        source=describe_source(weights.spec.source),
        size=human_bytes(revisions.resolved.total_bytes, "column") if revisions.resolved else None,
        nodes=NodeCounts(
            desired=len(load.desired),
            warm=load.warm,
            loading=load.loading,
            updated=len(load.nodes.updated),
            failed=len(load.failures),
            summary=_warm_summary(weights, load),
        ),
        progress=load.progress,
        progress_summary=percent,
        consumers=_consumers(snapshot.consumers, pods.pods),
        failures=_failures(load, pods) or None,
        verified_by=find_verified_by(snapshot, revisions.resolved),
        notes=notes or None,
        conditions=conditions.merge(
            weights.status.conditions or (), observed, now=snapshot.timestamp, generation=weights.generation
        ),
    )


def status_events(weights: ModelWeights, new: ModelWeightsStatus) -> tuple[Event, ...]:
    """Returns the events for the changes from the object's current status to the new one."""
    events = list(conditions.transition_events(weights.status.conditions or (), new.conditions or ()))
    known = {(each.node, each.reason) for each in weights.status.failures or ()}
    events.extend(
        Event(
            reason=each.reason,
            message=f"{each.node}: {each.message}"[:MESSAGE_LIMIT],
            key=f"{each.node} {each.reason} {weights.generation}",
            warning=True,
        )
        for each in new.failures or ()
        # The condition Degraded reports failing pods: one event, however many there are.
        if (each.node, each.reason) not in known and not each.pod
    )
    return tuple(events)
