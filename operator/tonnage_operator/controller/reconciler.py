"""Base of the two controllers: shared state, API client, and creation and deletion of Jobs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from tonnage_operator.controller.job_creator import JobCreator
from tonnage_operator.kube.resources import JOBS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from tonnage_operator.controller.state import ControllerState
    from tonnage_operator.domain.observed.job import Job
    from tonnage_operator.kube.client import KubeClient
    from tonnage_operator.kube.resources import Resource
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


async def relist(state: ControllerState, client: KubeClient, resource: Resource, *, label_selector: str = "") -> None:
    """Replaces the cached objects of one kind by a fresh list.

    Raises:
        ApiError: The list failed; the cache is unchanged.
    """
    items, version = await client.list(resource, label_selector=label_selector)
    state.store_for(resource).replace(items, version)


class Reconciler:
    """Base class of the controllers."""

    def __init__(self, state: ControllerState, client: KubeClient, metrics: Metrics) -> None:
        self._state = state
        self._client = client
        self._metrics = metrics
        self._job_creator = JobCreator(state, client)

    async def _delete_jobs(self, jobs: Iterable[Job]) -> None:
        async def delete(job: Job) -> None:
            await self._client.delete(JOBS, job.name, job.namespace, uid=job.uid)
            # Its watch event comes later, and decisions until then would delete it again.
            self._state.jobs.amend(job.uid, lambda known: replace(known, deleting=True))

        await gather_bounded(delete, jobs)
