"""Lets go of all objects, for an uninstall: without the operator nobody would remove its finalizer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from tonnage_operator.api import names
from tonnage_operator.kube.gateway import ApiError, Gateway
from tonnage_operator.kube.resources import MODEL_WEIGHTS

if TYPE_CHECKING:
    from tonnage_operator.kube.access import Access


_ROUNDS: Final = 30
"""How often all objects are looked at: those that somebody else changed meanwhile need another look."""


class StillHeld(Exception):
    """Somebody takes hold of objects again and again."""


async def release_all(access: Access) -> int:
    """Removes the finalizer from every object and returns from how many.

    Run it when the controller is stopped, or it adds the finalizer again.

    Raises:
        StillHeld: That is what happens.
    """
    released: set[str] = set()
    async with Gateway(access, field_manager=names.FIELD_MANAGER) as gateway:
        for _ in range(_ROUNDS):
            items, _version = await gateway.list(MODEL_WEIGHTS)
            held = [item["metadata"] for item in items if names.FINALIZER in (item["metadata"].get("finalizers") or ())]
            if not held:
                return len(released)
            for metadata in held:
                await _let_go(gateway, metadata)
                released.add(metadata["uid"])
            await asyncio.sleep(0.5)
    raise StillHeld(f"{len(held)} objects are held again and again: stop the controller first.")


async def _let_go(gateway: Gateway, metadata: dict[str, Any]) -> None:
    kept = [each for each in metadata["finalizers"] if each != names.FINALIZER]
    patch = {"metadata": {"finalizers": kept, "resourceVersion": metadata["resourceVersion"]}}
    try:
        await gateway.merge(MODEL_WEIGHTS, metadata["name"], metadata["namespace"], patch)
    except ApiError as error:
        if not error.not_found and not error.conflict:
            raise
