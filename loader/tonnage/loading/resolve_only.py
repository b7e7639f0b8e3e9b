"""Resolves a plan without loading it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tonnage.contract import Report, ReportKind, entry_name, revision_id
from tonnage.errors import (
    CHANGED_SINCE_LISTED,
    DigestMismatch,
    EndpointUnreachable,
    RetriesExhausted,
    escape_unprintable,
)
from tonnage.source.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tonnage.cache.cache import Cache
    from tonnage.contract import Plan
    from tonnage.source.resolve import ResolvedRevision


def resolve_plan(plan: Plan, *, environment: Mapping[str, str], canceled: Callable[[], bool] = lambda: False) -> Report:
    """Lists and pins the objects of the plan's sources without loading them.

    Raises:
        TonnageError: The source can't be resolved, or has another digest than the plan expects.
    """
    started = time.monotonic()
    retries: list[None] = []
    resolved = resolve(
        plan,
        environment=environment,
        deadline=deadline_of(plan, started),
        canceled=canceled,
        on_retry=lambda: retries.append(None),
    )
    check_digest(plan, resolved)
    return Report(
        kind=ReportKind.RESOLVED,
        revision=resolved.revision,
        digest=resolved.digest,
        entry=plan.entry or entry_name(resolved.revision, plan.layout, plan.computed_buffers),
        bytes=sum(pin.size for source in resolved.sources for pin in source.objects),
        seconds=round(time.monotonic() - started, 3),
        retries=len(retries),
        notes=tuple(map(escape_unprintable, resolved.notes)),
        resolved=resolved.sources,
        identity=plan.identity,
    )


def resolve_or_ask_peers(
    plan: Plan,
    cache: Cache,
    *,
    environment: Mapping[str, str],
    deadline: float | None,
    canceled: Callable[[], bool],
    on_retry: Callable[[], None],
) -> ResolvedRevision:
    """Resolves a plan; if its store can't be reached, by what peers have of a revision whose digest is known.

    Raises:
        TonnageError: The source can't be read, and no peer can help.
    """
    try:
        return resolve(plan, environment=environment, deadline=deadline, canceled=canceled, on_retry=on_retry)
    except (EndpointUnreachable, RetriesExhausted) as error:
        if plan.peers is None or plan.reporting is None or not plan.expected_digest or len(plan.sources) != 1:
            raise
        from tonnage.loading.peers.session import resolve_with_peers  # most loads have none

        name = plan.entry or entry_name(revision_id(plan.expected_digest), plan.layout, plan.computed_buffers)
        return resolve_with_peers(
            plan, plan.peers, plan.reporting, cache.entry(name), environment, error, canceled=canceled
        )


def deadline_of(plan: Plan, started: float) -> float | None:
    """Returns the plan's deadline as ``time.monotonic()``; None if it has none."""
    return started + plan.limits.timeout if plan.limits.timeout else None


def check_digest(plan: Plan, resolved: ResolvedRevision) -> None:
    """Checks that the source has the digest that the plan expects.

    Raises:
        DigestMismatch: It has another one.
    """
    if not plan.expected_digest or plan.expected_digest == resolved.digest:
        return
    if plan.identity is not None and plan.entry:  # of a ModelWeights, which listed the source before
        raise DigestMismatch(
            f"{CHANGED_SINCE_LISTED} for {plan.identity.namespace}/{plan.identity.name}: objects were added, "
            f"overwritten or removed. Its digest is {resolved.digest} now; {plan.expected_digest} is to be loaded.",
            remedy="Restore the objects; or have the ModelWeights resolve the source again (spec.revision.policy: "
            "Track), then create this pod again, which gets the new revision. Nodes with the old one still serve it.",
        )
    raise DigestMismatch(f"The source has digest {resolved.digest}; {plan.expected_digest} was expected.")
