"""What both loops are made of: the cluster as it is known, the way to it, and Jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tonnage_operator.controller.job_creator import JobCreator
from tonnage_operator.kube.resources import JOBS

if TYPE_CHECKING:
    from tonnage_operator.controller.state import ControllerState
    from tonnage_operator.domain.observed.job import Job
    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.telemetry import Metrics

Body = dict[str, Any]
Clock = Callable[[], datetime]
T = TypeVar("T")

_MAX_CONCURRENT: Final = 8
"""Requests of one decision that are under way at the same time."""


async def gather_bounded(func: Callable[[T], Awaitable[object]], items: Iterable[T]) -> None:
    """Does the same to all items, some at a time. A failure doesn't keep the others; the first one is raised after."""
    semaphore = asyncio.Semaphore(_MAX_CONCURRENT)

    async def one(item: T) -> None:
        async with semaphore:
            await func(item)

    results = await asyncio.gather(*(one(item) for item in items), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


def utc_now() -> datetime:
    """Returns the time, which tests replace."""
    return datetime.now(UTC)


class Reconciler:
    """Base of the loops."""

    def __init__(self, state: ControllerState, client: KubeClient, metrics: Metrics, *, clock: Clock = utc_now) -> None:
        self._state = state
        self._client = client
        self._metrics = metrics
        self._clock = clock
        self._job_creator = JobCreator(state, client)

    async def _delete_jobs(self, jobs: Iterable[Job]) -> None:
        async def delete(job: Job) -> None:
            await self._client.delete(JOBS, job.name, job.namespace, uid=job.uid)

        await gather_bounded(delete, jobs)
