"""Lets go of all objects, for an uninstall: without the operator nobody would remove its finalizer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator.api import names
from tonnage_operator.kube.client import ApiError, KubeClient
from tonnage_operator.kube.resources import MODEL_WEIGHTS

if TYPE_CHECKING:
    from tonnage_operator.kube.credentials import ClientConfig


_MAX_ROUNDS: Final = 30
"""How often all objects are looked at: those that somebody else changed meanwhile need another look."""


class FinalizerRestored(Exception):
    """Somebody takes hold of objects again and again."""


async def release_all(client_config: ClientConfig) -> int:
    """Removes the finalizer from every object and returns from how many.

    Run it when the controller is stopped, or it adds the finalizer again.

    Raises:
        StillHeld: That is what happens.
    """
    released: set[str] = set()
    async with KubeClient(client_config, field_manager=names.FIELD_MANAGER) as client:
        for _ in range(_MAX_ROUNDS):
            items, _version = await client.list(MODEL_WEIGHTS)
            with_finalizer = [
                item["metadata"] for item in items if names.FINALIZER in (item["metadata"].get("finalizers") or ())
            ]
            if not with_finalizer:
                return len(released)
            for metadata in with_finalizer:
                await _remove_finalizer(client, metadata)
                released.add(metadata["uid"])
            await asyncio.sleep(0.5)
    raise FinalizerRestored(f"{len(with_finalizer)} objects are held again and again: stop the controller first.")


async def _remove_finalizer(client: KubeClient, metadata: dict[str, Any]) -> None:
    kept = [each for each in metadata["finalizers"] if each != names.FINALIZER]
    patch = {"metadata": {"finalizers": kept, "resourceVersion": metadata["resourceVersion"]}}
    try:
        await client.merge_patch(MODEL_WEIGHTS, metadata["name"], metadata["namespace"], patch)
    except ApiError as error:
        if not error.not_found and not error.conflict:
            raise
