"""What both loops are made of: the cluster as it is known, the way to it, and Jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tonnage_operator.controller.launching import Launcher
from tonnage_operator.kube.resources import JOBS

if TYPE_CHECKING:
    from tonnage_operator.controller.cluster import Cluster
    from tonnage_operator.domain.facts import Job
    from tonnage_operator.kube.gateway import Gateway
    from tonnage_operator.telemetry import Metrics

Body = dict[str, Any]
Clock = Callable[[], datetime]
T = TypeVar("T")

_AT_ONCE: Final = 8
"""Requests of one decision that are under way at the same time."""


async def together(act: Callable[[T], Awaitable[object]], items: Iterable[T]) -> None:
    """Does the same to all items, some at a time. A failure doesn't keep the others; the first one is raised after."""
    turn = asyncio.Semaphore(_AT_ONCE)

    async def one(item: T) -> None:
        async with turn:
            await act(item)

    results = await asyncio.gather(*(one(item) for item in items), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


def utc_now() -> datetime:
    """Returns the time, which tests replace."""
    return datetime.now(UTC)


class Loop:
    """Base of the loops."""

    def __init__(self, cluster: Cluster, gateway: Gateway, metrics: Metrics, *, clock: Clock = utc_now) -> None:
        self._cluster = cluster
        self._gateway = gateway
        self._metrics = metrics
        self._clock = clock
        self._launcher = Launcher(cluster, gateway)

    async def _delete(self, jobs: Iterable[Job]) -> None:
        async def delete(job: Job) -> None:
            await self._gateway.delete(JOBS, job.name, job.namespace, uid=job.uid)

        await together(delete, jobs)
