"""Decides when new pods get a revision that replaces the one in use.

The new revision is loaded beside the one in use, which new pods still get. When at most ``maxUnavailable`` of the nodes
with the revision in use lack the new one, new pods get the new one, so that they are cold on at most that many nodes on
which they would have been warm. Then the rest of the nodes load it, and each evicts the previous revision when no pod
uses it any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tonnage.contract.sizes import human_bytes
from tonnage_operator.api.status import Rollout
from tonnage_operator.domain import units
from tonnage_operator.domain.conditions import Event
from tonnage_operator.domain.reasons import EventReason

if TYPE_CHECKING:
    from tonnage_operator.api.modelweights import RolloutSpec
    from tonnage_operator.domain.modelweights.revisions import Resolution
    from tonnage_operator.domain.observed.model_weights import ModelWeights


@dataclass(frozen=True)
class NodeRevisions:
    """Which of the desired nodes have which revision."""

    desired: frozenset[str] = frozenset()
    updated: frozenset[str] = frozenset()
    """They have the newest revision: the one that is rolled out, or else the one in use."""
    replaced: frozenset[str] = frozenset()
    """They have the revision that is replaced, with or without the newest one."""

    @property
    def outdated(self) -> frozenset[str]:
        """They have the revision that is replaced, and lack the newest one."""
        return self.replaced - self.updated


def max_unavailable(spec: RolloutSpec, desired: int) -> int:
    """Returns ``maxUnavailable`` as a number of nodes."""
    return min(desired, units.scale(spec.max_unavailable, desired))


def may_switch(nodes: NodeRevisions, limit: int) -> bool:
    """Returns whether new pods get the revision that is rolled out from now on.

    A revision that no node was able to load is used only where that was asked for, or where no node is warmed.

    Args:
        nodes: The desired nodes.
        limit: How many of them may be outdated then.
    """
    if limit >= len(nodes.desired):
        return True
    return bool(nodes.updated) and len(nodes.outdated) <= limit


def next_rollout(weights: ModelWeights, resolution: Resolution, nodes: NodeRevisions, *, now: str) -> Rollout | None:
    """Returns the rollout that is in progress after a decision; None if there is none, or all nodes have the revision.

    Args:
        weights: The object, with its status before the decision.
        resolution: The revision in use, and the one to roll out.
        nodes: The desired nodes.
        now: The time, if a rollout begins.
    """
    before, status = weights.status.rollout, weights.status
    in_use, target = resolution.revisions.resolved, resolution.target
    if in_use is None or not resolution.is_current or nodes.updated >= nodes.desired:
        return None
    newest = target or in_use
    same = before is not None and before.revision == newest.revision
    if target:
        previous = in_use.revision
    elif before and same:
        previous = before.previous
    elif status.resolved and status.resolved.revision != in_use.revision:
        previous = status.resolved.revision
    else:
        return None
    return Rollout(
        revision=newest.revision,
        previous=previous,
        start_time=before.start_time if before and same else now,
        max_unavailable=max_unavailable(weights.spec.revision.rollout, len(nodes.desired)),
        outdated=len(nodes.outdated),
        in_use=target is None,
    )


def rollout_events(before: Rollout | None, after: Rollout | None, resolution: Resolution) -> tuple[Event, ...]:
    """Returns the events of a rollout that begins, or that is complete."""
    in_use, newest = resolution.revisions.resolved, resolution.target or resolution.revisions.resolved
    if after and newest and (before is None or before.revision != after.revision):
        message = (
            f"Rolling out {after.revision} ({human_bytes(newest.total_bytes, 'column')}) in place of {after.previous}."
        )
        # Until the status is written, each restart begins the rollout at another time.
        since = in_use.used_time if in_use else ""
        return (Event(EventReason.ROLLOUT_STARTED, message, key=f"{after.revision} {after.previous} {since}"),)
    if before and after is None and in_use and before.revision == in_use.revision:
        message = f"All desired nodes have {before.revision}, which has replaced {before.previous}."
        return (Event(EventReason.ROLLOUT_COMPLETED, message, key=f"{before.revision} {before.start_time}"),)
    return ()


def describe_rollout(rollout: Rollout, nodes: NodeRevisions) -> str:
    """Returns how far a rollout is, as sentences."""
    has = "has" if len(nodes.updated) == 1 else "have"
    text = f"{len(nodes.updated)} of {len(nodes.desired)} nodes {has} {rollout.revision}."
    if rollout.in_use:
        return f"{text} New pods get it."
    lack = "lacks" if rollout.outdated == 1 else "lack"
    return (
        f"{text} New pods get {rollout.previous} until at most {rollout.max_unavailable} of the nodes that have it "
        f"lack the new one; now {rollout.outdated} {lack} it."
    )
