"""Merges conditions, and derives at most one event from each transition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tonnage_operator.api.base import Condition, ConditionStatus
from tonnage_operator.domain import naming
from tonnage_operator.domain.reasons import ConditionReason

if TYPE_CHECKING:
    from collections.abc import Iterable

MESSAGE_LIMIT: Final = 1000
"""Characters of one failure or event. A loader's own messages are shorter."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A condition without the time of its last transition. ``status`` is None if it is unknown."""

    type: str
    status: bool | None
    reason: str
    message: str = ""


def merge(
    old: Iterable[Condition], observed: Iterable[Observation], *, now: str, generation: int | None
) -> tuple[Condition, ...]:
    """Returns the new conditions. The transition time is kept where the status is unchanged."""
    before = {condition.type: condition for condition in old}
    merged = []
    for each in observed:
        status = ConditionStatus.UNKNOWN
        if each.status is not None:
            status = ConditionStatus.TRUE if each.status else ConditionStatus.FALSE
        earlier = before.get(each.type)
        same = earlier is not None and earlier.status is status
        merged.append(
            Condition(
                type=each.type,
                status=status,
                reason=each.reason,
                message=each.message[:32768],
                last_transition_time=earlier.last_transition_time if earlier and same else now,
                observed_generation=generation,
            )
        )
    return tuple(merged)


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes Event about an object. Events with the same ``key`` are posted once."""

    reason: str
    message: str
    key: str
    warning: bool = False

    def name(self, model: str, uid: str) -> str:
        """Returns the name of the Event object. It is deterministic, so posting an event twice creates one object."""
        return f"{model[:200]}.{naming.short_digest(uid, self.reason, self.key)}"


_REASON_EVENT_TYPES = frozenset({"Accepted", "Resolved", "Gated"})
"""Conditions that cause an event when only their reason changes. The reasons of the others change with each node."""

_STATUS_EVENT_TYPES = frozenset({"Warm", "Ready", "Degraded", "UpdateAvailable"})

_QUIET_REASONS = frozenset({ConditionReason.RESOLVING, ConditionReason.NOT_RESOLVED})
"""Reasons that never cause an event: every new object passes through them."""


def transition_events(old: Iterable[Condition], new: Iterable[Condition]) -> tuple[Event, ...]:
    """Returns an event for each significant change of a condition."""
    before = {condition.type: condition for condition in old}
    events = []
    for condition in new:
        earlier, is_true = before.get(condition.type), condition.status is ConditionStatus.TRUE
        flipped = earlier.status is not condition.status if earlier else is_true
        renamed = condition.type in _REASON_EVENT_TYPES and (earlier is None or earlier.reason != condition.reason)
        is_significant = (flipped and condition.type in _REASON_EVENT_TYPES | _STATUS_EVENT_TYPES) or renamed
        if not is_significant or condition.reason in _QUIET_REASONS:
            continue
        # The key contains the recorded transition time: a crash before the status write doesn't post the event twice.
        since = earlier.last_transition_time if earlier else ""
        good = not is_true if condition.type == "Degraded" else is_true
        events.append(
            Event(
                reason=condition.reason,
                message=f"{condition.type} is {condition.status.value}: {condition.message}"[:MESSAGE_LIMIT],
                key=f"{condition.type} {condition.status.value} {condition.reason} {since}",
                warning=not good,
            )
        )
    return tuple(events)
