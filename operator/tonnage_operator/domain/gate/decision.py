"""Decides whether a node may take pods now: all models that it waits for are warm there, or their time is over.

Nothing but objects of the API server decides, so a restart or a second process comes to the same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from tonnage_operator.domain import units
from tonnage_operator.domain.conditions import MESSAGE_LIMIT, Event
from tonnage_operator.domain.installation import GateMode
from tonnage_operator.domain.node_matching import blocking_taints, matches
from tonnage_operator.domain.reasons import EventReason

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from tonnage_operator.domain.gate.observed import GatedNode, GatingModel, NodeEntries
    from tonnage_operator.domain.installation import Installation

MAX_NAMED_MODELS: Final = 10
"""Models that a message names; the others are counted."""
MAX_MODEL_EVENTS: Final = 50
"""Models that get an event of their own about one node."""


@dataclass(frozen=True)
class GateSnapshot:
    """What one decision depends on."""

    now: datetime
    """By the API server's clock."""
    installation: Installation
    gated: GatedNode
    models: Iterable[GatingModel]
    entries: NodeEntries | None = None
    """The record of the node's cache; None if there is none."""


@dataclass(frozen=True)
class NewCondition:
    """The condition to write on the node."""

    status: bool
    reason: str
    message: str


@dataclass(frozen=True)
class GateDecision:
    """What to do about one node."""

    remove: tuple[str, ...] = ()
    """Keys of the startup taints to remove, with all their effects."""
    condition: NewCondition | None = None
    """The condition to write; None: none, or it is already written."""
    events: tuple[Event, ...] = ()
    """About the node."""
    model_events: tuple[tuple[GatingModel, Event], ...] = ()
    """About models that were not warm in time."""
    requeue_after: float | None = None
    """Seconds until the next timeout; None if the node waits for none."""


@dataclass(frozen=True)
class _Wait:
    """What a node waits for: a model, or (None) that it gets ready and the taints of others go."""

    model: GatingModel | None
    deadline: datetime
    why: str

    @property
    def text(self) -> str:
        return f"{self.model.ref} ({self.why})" if self.model else self.why


def decide_gate(snapshot: GateSnapshot) -> GateDecision:
    """Returns which startup taints go now, or which condition the node gets, and the events about it."""
    if snapshot.installation.gate.mode is GateMode.CONDITION:
        return _decide_condition(snapshot)
    decisions = [_decide_taint(snapshot, key) for key in snapshot.gated.startup_taints(snapshot.installation)]
    delays = [each.requeue_after for each in decisions if each.requeue_after is not None]
    return GateDecision(
        remove=tuple(key for each in decisions for key in each.remove),
        events=tuple(event for each in decisions for event in each.events),
        model_events=tuple(pair for each in decisions for pair in each.model_events),
        requeue_after=min(delays, default=None),
    )


def _decide_taint(snapshot: GateSnapshot, key: str) -> GateDecision:
    began = _began(snapshot, key)
    waits = _find_waits(snapshot, {key}, began)
    holding = [each for each in waits if each.deadline > snapshot.now]
    occurrence = f"{key} {units.format_time(began)}"
    if holding:
        last = max(each.deadline for each in holding)
        message = f"No pods until {units.format_time(last)} at the latest (taint {key}): waiting for {_list(holding)}."
        return GateDecision(
            events=(Event(EventReason.GATE_WAITING, message[:MESSAGE_LIMIT], key=occurrence),),
            requeue_after=_seconds_until_next(holding, snapshot.now),
        )
    if not waits:
        message = f"Removing the taint {key}: all models that it waits for are warm here."
        return GateDecision(remove=(key,), events=(Event(EventReason.GATE_OPENED, message, key=occurrence),))
    return _time_out(snapshot, waits, f"Removing the taint {key}", occurrence, remove=(key,))


def _time_out(
    snapshot: GateSnapshot, waits: list[_Wait], action: str, occurrence: str, *, remove: tuple[str, ...] = ()
) -> GateDecision:
    message = f"{action} because the time is over. Not warm here: {_list(waits)}."
    node = snapshot.gated.node
    late = [(each.model, each.why) for each in waits if each.model]
    model_events = tuple(
        (
            model,
            Event(
                EventReason.GATE_TIMED_OUT,
                f"Node {node.name} takes pods although the model isn't warm there after "
                f"{units.human_seconds(model.timeout)}: {why}.",
                key=f"{node.uid} {occurrence}",
                warning=True,
            ),
        )
        for model, why in late[:MAX_MODEL_EVENTS]
    )
    event = Event(EventReason.GATE_TIMED_OUT, message[:MESSAGE_LIMIT], key=occurrence, warning=True)
    return GateDecision(remove=remove, events=(event,), model_events=model_events)


def _decide_condition(snapshot: GateSnapshot) -> GateDecision:
    gated, settings = snapshot.gated, snapshot.installation.gate
    before = gated.condition
    if before and before.status == "True":
        return GateDecision()  # as with a taint: a node is gated once
    began = before.since if before and before.since else gated.created
    keys = set(settings.taints)
    is_awaited = any(
        model.taints and matches(model.placement, gated.node, snapshot.installation.prewarm)
        for model in snapshot.models
    )
    if not is_awaited and not before and not gated.startup_taints(snapshot.installation):
        return GateDecision()
    waits = _find_waits(snapshot, keys, began)
    holding = [each for each in waits if each.deadline > snapshot.now]
    occurrence = f"condition {units.format_time(began)}"
    if holding:
        new = NewCondition(status=False, reason=EventReason.GATE_WAITING, message=f"Waiting for {_list(holding)}.")
        same = before and (before.status, before.reason, before.message) == ("False", new.reason, new.message)
        return GateDecision(condition=None if same else new, requeue_after=_seconds_until_next(holding, snapshot.now))
    if not waits:
        new = NewCondition(status=True, reason=EventReason.GATE_OPENED, message="All awaited models are warm.")
        return GateDecision(condition=new)
    decision = _time_out(snapshot, waits, "The condition is set", occurrence)
    new = NewCondition(status=True, reason=EventReason.GATE_TIMED_OUT, message=decision.events[0].message)
    return GateDecision(condition=new, events=decision.events, model_events=decision.model_events)


def _began(snapshot: GateSnapshot, key: str) -> datetime:
    """Returns when the node got the taint.

    Nodes are born with it. Until the longest possible timeout after that, other changes of the node's taints don't
    count, or a node that flaps would never take pods. A later change may be the return of the taint.
    """
    gated = snapshot.gated
    if key in gated.taints_added:
        return gated.taints_added[key]
    longest = timedelta(seconds=snapshot.installation.gate.max_seconds)
    changed = gated.taints_changed
    return changed if changed and changed > gated.created + longest else gated.created


def _find_waits(snapshot: GateSnapshot, keys: set[str], began: datetime) -> list[_Wait]:
    """Returns what a node's startup taints wait for, whether or not the time is over."""
    installation, node = snapshot.installation, snapshot.gated.node
    waits = []
    for model in sorted(snapshot.models, key=lambda each: each.ref):
        if model.taints.isdisjoint(keys) or not matches(model.placement, node, installation.prewarm):
            continue
        blocking = blocking_taints(model.placement, node, installation)
        if any(not installation.gate.is_temporary(taint.key) for taint in blocking):
            continue  # as with a DaemonSet: its Jobs will never run there
        if snapshot.entries and model.key and snapshot.entries.is_warm(node, model.key):
            continue
        waits.append(_Wait(model, began + timedelta(seconds=model.timeout), _why_not_warm(snapshot, model)))
    if not waits and (obstacle := _find_obstacle(snapshot)):
        # Its labels may not be complete, so which models match it isn't known.
        return [_Wait(None, began + timedelta(seconds=installation.gate.max_seconds), obstacle)]
    return waits


def _find_obstacle(snapshot: GateSnapshot) -> str:
    """Returns why the node itself isn't complete; empty if it is."""
    node, settings = snapshot.gated.node, snapshot.installation.gate
    if not node.ready:
        return "the node, which is not ready"
    others = [each.key for each in node.taints if each.key not in settings.taints and settings.is_temporary(each.key)]
    return f"the node, which has the taint {others[0]}" if others else ""


def _why_not_warm(snapshot: GateSnapshot, model: GatingModel) -> str:
    node, entries = snapshot.gated.node, snapshot.entries
    if model.key is None:
        return f"its source is not resolved: {model.problem}"
    if node.name in model.failures:
        return model.failures[node.name]
    if entries and entries.is_about(node) and model.key in entries.loading:
        return "it is loading"
    if not node.ready:
        return "the node is not ready"
    if blocking := blocking_taints(model.placement, node, snapshot.installation):
        return f"its Jobs don't tolerate {blocking[0].key}"
    return "it is not loaded"


def _list(waits: list[_Wait]) -> str:
    named = ", ".join(each.text for each in waits[:MAX_NAMED_MODELS])
    return named + (f" and {len(waits) - MAX_NAMED_MODELS} more" if len(waits) > MAX_NAMED_MODELS else "")


def _seconds_until_next(waits: list[_Wait], now: datetime) -> float:
    return max(1.0, min((each.deadline - now).total_seconds() for each in waits))
