"""What ``kubectl tonnage why`` answers: a reason, one sentence, and the next step for each reason there is. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tonnage.errors import Reason
from tonnage_operator.domain.observed.remedies import remedy
from tonnage_operator.domain.reasons import ConditionReason, FailureReason


@dataclass(frozen=True)
class Explanation:
    """Why an object is in its state.

    Attributes:
        subject: The object, such as ``pod serving/vllm-0``.
        reason: The stable reason; see docs/guides/operations/reasons.md.
        sentence: What is the case.
        next_step: What to do; empty if there is nothing to do.
        is_fine: Nothing is wrong and nothing is waited for.
    """

    subject: str
    reason: str
    sentence: str
    next_step: str = ""
    is_fine: bool = False


WAIT: Final = "Nothing to do: it goes on by itself."
_STEPS: Final[dict[str, str]] = {
    ConditionReason.INVALID_SPEC: "Finish the upgrade: CRD and operator must come from one chart.",
    ConditionReason.SPEC_TOO_LARGE: "Use a prefix in place of keys, or urlsFrom in place of urls.",
    ConditionReason.MEDIUM_NOT_CONFIGURED: "Choose another spec.cache.medium or delivery, or have the administrator "
    "enable the medium in the chart.",
    ConditionReason.RESOLVING: "Nothing to do for some seconds; then look at the log and events of the pod with the "
    "label tonnage.dev/loader=resolve.",
    ConditionReason.NOT_RESOLVED: "Look at the condition Resolved of the ModelWeights.",
    ConditionReason.LOADING: WAIT,
    ConditionReason.WAITING_FOR_SPACE: "Delete objects that are not needed, warm fewer nodes, or ask the administrator "
    "for capacity.",
    ConditionReason.ENTRY_TOO_LARGE: "Use another medium or delivery or fewer files, or ask the administrator for a "
    "larger capacity.",
    ConditionReason.UPDATING: WAIT,
    ConditionReason.SUSPENDED: "Set spec.suspend to false.",
    ConditionReason.BACKOFF: "Remove the cause that the other conditions name; it is then retried, or at once with "
    "`kubectl tonnage warm`.",
    ConditionReason.ROLLOUT_BLOCKED: "Repair the node that the message names, raise "
    "spec.revision.rollout.maxUnavailable, or pin the old revision.",
    ConditionReason.NO_GATE: "If nodes come and go, set spec.placement.gate.",
    ConditionReason.GATE_NOT_CONFIGURED: "Have the administrator set the chart's values gate.enabled and gate.taints, "
    "or correct spec.placement.gate.taints.",
    ConditionReason.NO_MATCHING_NODES: "Compare labels and taints of the nodes with spec.placement.",
    ConditionReason.TOO_FEW_NODES: "Lower spec.placement.count, or add nodes.",
    ConditionReason.PARTIALLY_WARM: "Nothing to do, or raise spec.placement.maxConcurrentNodes if the bucket can "
    "sustain it.",
    ConditionReason.NO_WARM_NODE: "Warm nodes with `kubectl tonnage warm`, or set spec.placement.scheduling to Prefer.",
    ConditionReason.NODE_LOAD_FAILED: "Look at status.failures: each node has a reason of its own.",
    ConditionReason.POD_LOAD_FAILED: "Run `kubectl tonnage why` with the pod that the message names.",
    ConditionReason.SOURCE_CHANGED: "With update: Manual, set spec.revision.pin to status.available.revision when you "
    "want it.",
    ConditionReason.NODE_NOT_READY: "Repair the node; nothing waits for it.",
    ConditionReason.EVICTING: WAIT,
    ConditionReason.LOADS_WAITING: "Delete objects that are not needed, or raise the capacity.",
    ConditionReason.TOO_MANY_ENTRIES: "Delete objects that are not needed, or keep fewer revisions on the node.",
    ConditionReason.ALMOST_FULL: "Delete objects that are not needed, or enlarge the medium.",
    FailureReason.REPORT_LOST: "Let loaders reach the controller's Service on port 8443: network policies, "
    "certificates, the chart's value reports.enabled.",
    FailureReason.REPORT_CONTRADICTS_ITSELF: "Find out who may create pods in the namespace; or finish the upgrade of "
    "loader and operator.",
    FailureReason.PIN_UNKNOWN: "Set spec.revision.pin to a revision of `kubectl tonnage history`.",
    FailureReason.POD_NOT_CREATED: "Follow the API server's message: ServiceAccount, quota, or Pod Security level of "
    "the namespace.",
    FailureReason.JOB_SUSPENDED: "Name a queue for all Jobs in the chart's value loader.jobs.labels, or have Kueue "
    "leave the operator's Jobs alone.",
    FailureReason.LOADER_KILLED: "Look at the node at that time: shutdown, memory. The load is retried.",
    FailureReason.LOADER_UNSCHEDULABLE: "Follow the scheduler's message; a cache in memory requests the bytes that it "
    "writes.",
    FailureReason.CONTAINER_NOT_STARTED: "Check the chart's values image.registry and image.pullSecrets, and that the "
    "ConfigMap or Secret that the message names exists in the namespace.",
}  # fmt: skip
"""The next step for each reason of the operator that has one. The loader's are in ``observed.remedies``."""

FINE: Final = frozenset(
    str(each)
    for each in (
        ConditionReason.ACCEPTED,
        ConditionReason.RESOLVED,
        ConditionReason.IDLE,
        ConditionReason.NOTHING_TO_PREWARM,
        ConditionReason.ALL_NODES_WARM,
        ConditionReason.WARM,
        ConditionReason.LOADED_ON_DEMAND,
        ConditionReason.ALL_NODES_HEALTHY,
        ConditionReason.UP_TO_DATE,
        ConditionReason.GATED,
        ConditionReason.NODE_READY,
        ConditionReason.ROOM_LEFT,
    )
)
"""Reasons of states in which nothing is to be done."""


def next_step(reason: str, message: str = "", *, condition: str = "") -> str:
    """Returns what to do about a reason; empty if it is fine or unknown.

    Args:
        reason: The reason.
        message: The message beside it.
        condition: The type of the condition that has it; ``SourceChanged`` is two things.
    """
    if reason == Reason.SOURCE_CHANGED and condition == "UpdateAvailable":
        return _STEPS[ConditionReason.SOURCE_CHANGED]
    return remedy(reason, message) or _STEPS.get(reason, "")
