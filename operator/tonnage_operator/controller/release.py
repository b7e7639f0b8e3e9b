"""Lets go of all objects, for an uninstall: without the operator nobody would remove its finalizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage_operator.api import names
from tonnage_operator.kube.gateway import ApiError, Gateway
from tonnage_operator.kube.resources import MODEL_WEIGHTS

if TYPE_CHECKING:
    from tonnage_operator.kube.access import Access


async def release_all(access: Access) -> int:
    """Removes the finalizer from every object and returns from how many.

    Run it when the controller is stopped, or it adds the finalizer again.
    """
    released = 0
    async with Gateway(access, field_manager=names.FIELD_MANAGER) as gateway:
        items, _ = await gateway.list(MODEL_WEIGHTS)
        for item in items:
            metadata = item["metadata"]
            kept = [each for each in metadata.get("finalizers") or () if each != names.FINALIZER]
            if kept == (metadata.get("finalizers") or []):
                continue
            patch = {"metadata": {"finalizers": kept, "resourceVersion": metadata["resourceVersion"]}}
            try:
                await gateway.merge(MODEL_WEIGHTS, metadata["name"], metadata["namespace"], patch)
            except ApiError as error:
                if not error.not_found:
                    raise
            released += 1
    return released
