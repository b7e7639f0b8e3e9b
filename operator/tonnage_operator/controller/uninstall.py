"""Prepares an uninstall: removes finalizers (``release_all``), or empties the whole cluster first (``wipe_all``)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tonnage.contract.sizes import human_bytes
from tonnage_operator.api import names
from tonnage_operator.api.base import Body, ConditionStatus
from tonnage_operator.api.modelweights import Retention
from tonnage_operator.api.nodecache import NodeCacheStatus
from tonnage_operator.kube.client import ApiError, KubeClient
from tonnage_operator.kube.resources import GROUP_REVISIONS, MODEL_WEIGHTS, NODE_CACHES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage_operator.kube.credentials import ClientConfig

_POLL_INTERVAL: Final = 1.0
_MAX_RELEASE_ROUNDS: Final = 30
"""Lists of all objects before ``release_all`` gives up; objects that changed in between need another round."""
_RELEASE_INTERVAL: Final = 0.5


class FinalizerRestored(Exception):
    """Objects keep getting the finalizer back."""


@dataclass(frozen=True)
class Leftover:
    """An object or entry that still exists. ``blocking``: it may go yet; if not, its node is unreachable."""

    text: str
    blocking: bool


async def release_all(client_config: ClientConfig) -> int:
    """Removes the finalizer from every ``ModelWeights`` and returns the number of changed objects.

    Deletes all ``GroupRevision`` objects, too: after the uninstall no pod gets a revision.

    Without an operator, objects with the finalizer can't be deleted. Stop the controller first: it would add the
    finalizer again.

    Raises:
        FinalizerRestored: Objects still have the finalizer after ``_MAX_RELEASE_ROUNDS``.
        ApiError: A request failed.
    """
    released: set[str] = set()
    async with KubeClient(client_config, field_manager=names.FIELD_MANAGER) as client:
        for _ in range(_MAX_RELEASE_ROUNDS):
            items, _version = await client.list(MODEL_WEIGHTS)
            with_finalizer = [
                item["metadata"] for item in items if names.FINALIZER in (item["metadata"].get("finalizers") or ())
            ]
            if not with_finalizer:
                await _delete_group_revisions(client)
                return len(released)
            for metadata in with_finalizer:
                await _remove_finalizer(client, metadata)
                released.add(metadata["uid"])
            await asyncio.sleep(_RELEASE_INTERVAL)
    raise FinalizerRestored(
        f"{len(with_finalizer)} ModelWeights still have the finalizer {names.FINALIZER}: stop the controller first."
    )


async def _delete_group_revisions(client: KubeClient) -> None:
    for each in (await client.list(GROUP_REVISIONS))[0]:
        metadata = each["metadata"]
        await client.delete(GROUP_REVISIONS, metadata["name"], metadata["namespace"], uid=metadata["uid"])


async def _remove_finalizer(client: KubeClient, metadata: Body) -> None:
    kept = [each for each in metadata["finalizers"] if each != names.FINALIZER]
    patch = {"metadata": {"finalizers": kept, "resourceVersion": metadata["resourceVersion"]}}
    try:
        await client.merge_patch(MODEL_WEIGHTS, metadata["name"], metadata["namespace"], patch)
    except ApiError as error:
        if not error.not_found and not error.conflict:
            raise


async def wipe_all(client_config: ClientConfig, *, timeout_seconds: float) -> list[Leftover]:
    """Deletes all objects, waits until the running controller has emptied the nodes, and returns what remains.

    Returns when nothing blocks any more or the time is up. Entries on nodes that are not ready can't be removed; they
    are reported and left.

    Args:
        client_config: With the role of ``operator/rbac/wipe.yaml``.
        timeout_seconds: Seconds.
    """
    deadline = time.monotonic() + timeout_seconds
    async with KubeClient(client_config, field_manager=names.FIELD_MANAGER) as client:
        while True:
            weights, _ = await client.list(MODEL_WEIGHTS)
            for each in weights:
                await _delete_weights(client, each)
            await _delete_group_revisions(client)
            caches, _ = await client.list(NODE_CACHES)
            for each in caches:
                await _release_evictable_entries(client, each)
            remaining = leftovers(weights, caches)
            if not any(each.blocking for each in remaining) or time.monotonic() > deadline:
                return remaining
            await asyncio.sleep(_POLL_INTERVAL)


def leftovers(weights: Iterable[Body], caches: Iterable[Body]) -> list[Leftover]:
    """Returns what still exists, objects first.

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
            size = human_bytes(entry.bytes, "column")
            name = f"{entry.medium.value} entry {entry.name} ({size}) on {cache['metadata']['name']}"
            why = f"is {entry.state.value}; pods that use it keep it" if reachable else "is unreachable: node not ready"
            found.append(Leftover(f"{name} {why}", blocking=reachable))
    return found


async def _delete_weights(client: KubeClient, body: Body) -> None:
    metadata = body["metadata"]
    if "deletionTimestamp" in metadata:
        return
    if (body["spec"].get("cache") or {}).get("retention") == Retention.EVICTABLE:
        # Evictable entries outlive their objects, but a wipe must remove them.
        patch = {"metadata": {"uid": metadata["uid"]}, "spec": {"cache": {"retention": Retention.WHILE_REFERENCED}}}
        try:
            await client.merge_patch(MODEL_WEIGHTS, metadata["name"], metadata["namespace"], patch)
        except ApiError as error:
            if not error.not_found and not error.conflict:
                raise
    await client.delete(MODEL_WEIGHTS, metadata["name"], metadata["namespace"], uid=metadata["uid"])


async def _release_evictable_entries(client: KubeClient, body: Body) -> None:
    """Changes the retention of evictable entries that no object refers to, so that the controller evicts them."""
    status = NodeCacheStatus.model_validate(body.get("status") or {})
    entries = status.entries or ()
    if not any(entry.retention is Retention.EVICTABLE and not entry.models for entry in entries):
        return
    released = tuple(entry.model_copy(update={"retention": Retention.WHILE_REFERENCED}) for entry in entries)
    metadata = body["metadata"]
    new_status = status.model_copy(update={"entries": released})
    try:
        await client.update_status(
            NODE_CACHES,
            metadata["name"],
            "",
            uid=metadata["uid"],
            resource_version=metadata["resourceVersion"],
            status=new_status.model_dump(mode="json", by_alias=True, exclude_none=True),
        )
    except ApiError as error:
        # The controller wrote at the same time; the next poll tries again.
        if not error.not_found and not error.conflict:
            raise
