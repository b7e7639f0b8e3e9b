"""Fresh lists for decisions that can't be taken back: what a watch shows may be minutes old."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from tonnage_operator.api import names
from tonnage_operator.kube.resources import JOBS, MODEL_WEIGHTS, NODE_CACHES, NODES, PODS

if TYPE_CHECKING:
    from tonnage_operator.controller.state import ControllerState
    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.kube.resources import Resource

SELECTORS: Final[dict[Resource, str]] = {
    MODEL_WEIGHTS: "",
    NODE_CACHES: "",
    NODES: "",
    JOBS: f"{names.MANAGED_BY}={names.MANAGER}",
    PODS: names.ROLE,
}
"""The watched kinds, each with the label selector that the API server applies."""

_MAX_AGE: Final = 5.0
"""Seconds for which a list counts as fresh."""


async def relist(state: ControllerState, client: KubeClient, resource: Resource) -> None:
    """Replaces the cached objects of one kind by a fresh list.

    Raises:
        ApiError: The list failed; the cache is unchanged.
    """
    items, version = await client.list(resource, label_selector=SELECTORS[resource])
    state.store_for(resource).replace(items, version)


class FreshLists:
    """Lists kinds again if their latest list is older than five seconds."""

    def __init__(self, state: ControllerState, client: KubeClient, *resources: Resource) -> None:
        self._state = state
        self._client = client
        self._resources = resources
        self._listed_at = float("-inf")
        self._lock = asyncio.Lock()

    async def refresh(self) -> None:
        """Lists the kinds, unless that was done in the last seconds.

        Raises:
            ApiError: A list failed.
        """
        async with self._lock:
            if time.monotonic() - self._listed_at < _MAX_AGE:
                return
            started = time.monotonic()
            for resource in self._resources:
                await relist(self._state, self._client, resource)
            self._listed_at = started
