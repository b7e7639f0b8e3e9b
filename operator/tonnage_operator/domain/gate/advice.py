"""What an object's author should know of its gate: that it works, has no effect, or is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tonnage_operator.api.placement import Scheduling
from tonnage_operator.domain import units
from tonnage_operator.domain.conditions import Observation
from tonnage_operator.domain.reasons import ConditionReason

if TYPE_CHECKING:
    from tonnage_operator.api.placement import PlacementSpec
    from tonnage_operator.domain.installation import Installation

CONDITION_TYPE: Final = "Gated"
"""Condition of objects with a gate, and of those that require warm nodes and have none."""


def find_gate_condition(placement: PlacementSpec, installation: Installation) -> Observation | None:
    """Returns the condition ``Gated``; None for an object that neither has a gate nor requires warm nodes."""
    gate, settings = placement.gate, installation.gate
    if gate is None:
        if placement.scheduling is not Scheduling.REQUIRE:
            return None
        message = (
            "spec.placement.scheduling is Require, and nothing keeps pods from nodes that join later: a pod that waits "
            "for room on warm nodes may start there, and load the model itself. If nodes come and go, set "
            "spec.placement.gate."
        )
        return Observation(CONDITION_TYPE, status=False, reason=ConditionReason.NO_GATE, message=message)
    if not settings.enabled:
        message = "spec.placement.gate has no effect: the administrator hasn't set gate.enabled in the chart."
        return Observation(CONDITION_TYPE, status=False, reason=ConditionReason.GATE_NOT_CONFIGURED, message=message)
    known = ", ".join(settings.taints)
    if unknown := sorted(set(gate.taints or ()) - set(settings.taints)):
        message = (
            f"Nothing removes the taint {', '.join(unknown)} of spec.placement.gate; the chart's gate.taints: {known}."
        )
        return Observation(CONDITION_TYPE, status=False, reason=ConditionReason.GATE_NOT_CONFIGURED, message=message)
    seconds = min(units.parse_duration(gate.timeout), settings.max_seconds)
    taints = ", ".join(sorted(settings.taints_of(gate)))
    message = (
        f"New nodes with the taint {taints} take no pods until the model is warm there, for at most "
        f"{units.human_seconds(seconds)}."
    )
    return Observation(CONDITION_TYPE, status=True, reason=ConditionReason.GATED, message=message)
