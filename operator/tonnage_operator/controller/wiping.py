"""Empties the whole cluster before an uninstall: deletes all objects, and waits until the controller emptied the nodes.

The controller does the work, so it must run meanwhile. What is on nodes that are not ready can't be reached by anybody,
and is told and left.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator.api import names
from tonnage_operator.api.base import ConditionStatus
from tonnage_operator.api.modelweights import Retention
from tonnage_operator.api.nodecache import NodeCacheStatus
from tonnage_operator.domain.units import human_bytes
from tonnage_operator.kube.gateway import ApiError, Gateway
from tonnage_operator.kube.resources import MODEL_WEIGHTS, NODE_CACHES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage_operator.kube.access import Access

Body = dict[str, Any]

_LOOK_AGAIN: Final = 1.0


@dataclass(frozen=True)
class Leftover:
    """What is not gone. ``blocking``: waiting longer may help; otherwise its node is out of reach."""

    text: str
    blocking: bool


def leftovers(weights: Iterable[Body], caches: Iterable[Body]) -> list[Leftover]:
    """Returns what there still is, objects first.

    Args:
        weights: All ``ModelWeights``.
        caches: All ``NodeCache`` objects.
    """
    found = [
        Leftover(
            f"ModelWeights {each['metadata']['namespace']}/{each['metadata']['name']} is being deleted", blocking=True
        )
        for each in weights
    ]
    for cache in caches:
        status = NodeCacheStatus.model_validate(cache.get("status") or {})
        reachable = any(
            each.type == "Ready" and each.status is ConditionStatus.TRUE for each in status.conditions or ()
        )
        for entry in status.entries or ():
            name = (
                f"{entry.medium.value} entry {entry.name} ({human_bytes(entry.bytes)}) on {cache['metadata']['name']}"
            )
            why = f"is {entry.state.value}; pods that use it keep it" if reachable else "is out of reach: not ready"
            found.append(Leftover(f"{name} {why}", blocking=reachable))
    return found


async def wipe_all(access: Access, *, within: float) -> list[Leftover]:
    """Deletes all objects, and returns what is left when nothing blocks any more or the time is up.

    Args:
        access: With the role of ``operator/rbac/wipe.yaml``.
        within: Seconds.
    """
    deadline = time.monotonic() + within
    async with Gateway(access, field_manager=names.FIELD_MANAGER) as gateway:
        while True:
            weights, _ = await gateway.list(MODEL_WEIGHTS)
            for each in weights:
                await _delete(gateway, each)
            caches, _ = await gateway.list(NODE_CACHES)
            for each in caches:
                await _let_go(gateway, each)
            left = leftovers(weights, caches)
            if not any(each.blocking for each in left) or time.monotonic() > deadline:
                return left
            await asyncio.sleep(_LOOK_AGAIN)


async def _delete(gateway: Gateway, body: Body) -> None:
    metadata = body["metadata"]
    if "deletionTimestamp" in metadata:
        return
    if (body["spec"].get("cache") or {}).get("retention") == Retention.EVICTABLE:
        # Evictable entries outlive their objects, which is not what is asked for here.
        patch = {"metadata": {"uid": metadata["uid"]}, "spec": {"cache": {"retention": Retention.WHILE_REFERENCED}}}
        try:
            await gateway.merge(MODEL_WEIGHTS, metadata["name"], metadata["namespace"], patch)
        except ApiError as error:
            if not error.not_found and not error.conflict:
                raise
    await gateway.delete(MODEL_WEIGHTS, metadata["name"], metadata["namespace"], uid=metadata["uid"])


async def _let_go(gateway: Gateway, body: Body) -> None:
    """Has the controller empty evictable entries to which no object refers any more."""
    status = NodeCacheStatus.model_validate(body.get("status") or {})
    entries = status.entries or ()
    if not any(entry.retention is Retention.EVICTABLE and not entry.models for entry in entries):
        return
    changed = tuple(entry.model_copy(update={"retention": Retention.WHILE_REFERENCED}) for entry in entries)
    metadata = body["metadata"]
    record = status.model_copy(update={"entries": changed})
    try:
        await gateway.update_status(
            NODE_CACHES,
            metadata["name"],
            "",
            uid=metadata["uid"],
            version=metadata["resourceVersion"],
            status=record.model_dump(mode="json", by_alias=True, exclude_none=True),
        )
    except ApiError as error:
        # The controller wrote meanwhile: the next look decides anew.
        if not error.not_found and not error.conflict:
            raise
