"""Work queue: reconciles each key in one task, never concurrently with itself, with rate limits and backoff."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from tonnage.contract.backoff import Backoff
from tonnage_operator.controller.rate_limiter import RateLimiter
from tonnage_operator.controller.turns import Turns

_LOG = logging.getLogger("tonnage.workers")

_RECONCILE_TIMEOUT: Final = 300.0
_BACKOFF: Final = Backoff(base=0.5, cap=60.0, low=0.75, high=1.25)


class Gone(Exception):
    """Raised by a reconcile whose object is deleted; the key is dropped."""


class StaleCache(Exception):
    """Raised by a reconcile whose cache is older than the API server; the key is requeued with backoff."""


ReconcileFunc = Callable[[str], Awaitable[float | None]]
"""Reconciles one key. Returns the seconds until it is requeued, or None to wait for the next ``add``."""


@dataclass
class _Worker:
    pending: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    failures: int = 0
    busy: bool = False


class WorkQueue:
    """The queue of one kind of keys.

    A key that is added during its reconcile is reconciled once more. Errors are logged and retried with backoff.
    ``batch_delay`` is the minimum time in seconds from ``add`` to the reconcile. Queues with the same ``turns`` begin
    their reconciles one after the other.
    """

    def __init__(
        self,
        name: str,
        reconcile: ReconcileFunc,
        *,
        batch_delay: float = 0.1,
        max_concurrent: int = 16,
        rate_limiter: RateLimiter | None = None,
        turns: Turns | None = None,
        on_result: Callable[[str, float], None] | None = None,
    ) -> None:
        self._name = name
        self._reconcile = reconcile
        self._batch_delay = batch_delay
        self._rate_limiter = rate_limiter or RateLimiter(burst=20, interval=1.0)
        self._turns = turns or Turns()
        self._semaphore = asyncio.Semaphore(max_concurrent)
        self._workers: dict[str, _Worker] = {}
        self._on_result = on_result or (lambda *_: None)
        self._closed = False

    def add(self, key: str) -> None:
        """Enqueues the key; adding a pending key again has no effect."""
        if self._closed:
            return
        worker = self._workers.get(key)
        if worker is None:
            worker = self._workers[key] = _Worker()
            # In a context of its own: that of the kopf handler which adds the key would keep its event alive.
            worker.task = asyncio.create_task(
                self._run(key, worker), name=f"{self._name} {key}", context=contextvars.Context()
            )
        worker.pending.set()

    async def close(self) -> None:
        """Cancels all reconciles, including their requests."""
        self._closed = True
        tasks = [worker.task for worker in self._workers.values() if worker.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def idle(self) -> bool:
        """True when no key is pending or being reconciled. For tests."""
        return not any(worker.pending.is_set() or worker.busy for worker in self._workers.values())

    async def _run(self, key: str, worker: _Worker) -> None:
        requeue_after: float | None = None
        while True:
            try:
                async with asyncio.timeout(requeue_after):
                    await worker.pending.wait()
            except TimeoutError:
                await asyncio.sleep(self._rate_limiter.delay(key))
            else:
                # Changes that arrive together are reconciled together.
                await asyncio.sleep(max(self._batch_delay, self._rate_limiter.delay(key)))
            self._rate_limiter.consume(key)
            worker.busy = True
            worker.pending.clear()
            try:
                requeue_after = await self._reconcile_once(key, worker)
            except Gone:
                if not worker.pending.is_set():
                    del self._workers[key]
                    self._rate_limiter.drop(key)
                    return
                requeue_after = None
            finally:
                worker.busy = False

    async def _reconcile_once(self, key: str, worker: _Worker) -> float | None:
        started = time.monotonic()
        try:
            async with self._semaphore, asyncio.timeout(_RECONCILE_TIMEOUT):
                await self._turns.wait()
                requeue_after = await self._reconcile(key)
        except Gone:
            self._on_result("gone", time.monotonic() - started)
            raise
        except StaleCache:
            worker.failures += 1
            self._on_result("outdated", time.monotonic() - started)
            return _BACKOFF.delay(worker.failures)
        except Exception as error:  # noqa: BLE001 - an error with one object must not stop the others
            worker.failures += 1
            delay = _BACKOFF.delay(worker.failures)
            expected = hasattr(error, "status")
            _LOG.log(
                logging.WARNING if expected else logging.ERROR,
                "Reconciling %s %s failed, retrying in %.1f s: %s",
                self._name,
                key,
                delay,
                error,
                exc_info=None if expected else error,
            )
            self._on_result("error", time.monotonic() - started)
            return delay
        worker.failures = 0
        self._on_result("ok", time.monotonic() - started)
        return requeue_after
