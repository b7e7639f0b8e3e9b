"""Base of the two controllers: shared state, API client and Jobs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

from tonnage_operator.controller.job_control import JobControl

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from tonnage_operator.controller.state import ControllerState
    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.telemetry import Metrics

T = TypeVar("T")

_MAX_CONCURRENT: Final = 8
"""Requests of one decision that run at the same time."""


async def gather_bounded(func: Callable[[T], Awaitable[object]], items: Iterable[T]) -> None:
    """Calls ``func`` for all items with bounded concurrency. All calls finish before the first exception is raised."""
    semaphore = asyncio.Semaphore(_MAX_CONCURRENT)

    async def call(item: T) -> None:
        async with semaphore:
            await func(item)

    results = await asyncio.gather(*(call(item) for item in items), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


class Reconciler:
    """Base class of the controllers."""

    def __init__(self, state: ControllerState, client: KubeClient, metrics: Metrics) -> None:
        self._state = state
        self._client = client
        self._metrics = metrics
        self._job_control = JobControl(state, client)
