"""When a key is reconciled: immediately after rare changes, batched after frequent ones, again after a failure."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from support.waiting import eventually_async
from tonnage_operator.controller.rate_limiter import RateLimiter
from tonnage_operator.controller.turns import Turns
from tonnage_operator.controller.workqueue import Gone, StaleCache, WorkQueue


@given(st.lists(st.floats(0, 3), max_size=60))
def test_a_rate_limiter_allows_a_burst_and_then_its_rate(gaps: list[float]) -> None:
    now = [100.0]
    limiter = RateLimiter(burst=3, interval=2.0, clock=lambda: now[0])
    runs: list[float] = []
    for gap in gaps:
        now[0] += gap
        if not limiter.delay("a"):
            limiter.consume("a")
            runs.append(now[0])
    for index, first in enumerate(runs):
        for last in runs[index:]:
            count = sum(first <= run <= last for run in runs)
            assert count <= 3 + (last - first) / 2 + 1e-6


def test_a_rate_limiter_returns_the_delay_per_key() -> None:
    now = [0.0]
    limiter = RateLimiter(burst=1, interval=5.0, clock=lambda: now[0])
    limiter.consume("a")
    assert (limiter.delay("a"), limiter.delay("b")) == (5.0, 0.0)
    now[0] = 4.0
    assert limiter.delay("a") == 1.0
    limiter.drop("a")
    assert limiter.delay("a") == 0.0


async def test_a_burst_of_keys_is_processed_concurrently() -> None:
    seen: Counter[str] = Counter()

    async def reconcile(key: str) -> None:
        seen[key] += 1

    queue = WorkQueue("test", reconcile, batch_delay=0.0, rate_limiter=RateLimiter(burst=2, interval=60.0))
    for _ in range(200):
        queue.add("a")
        await asyncio.sleep(0)
    queue.add("b")
    await eventually_async(lambda: seen["b"] == 1)
    assert 1 <= seen["a"] <= 2
    assert not queue.idle, "a delayed key must stay pending"
    await queue.close()


async def test_a_key_is_never_processed_concurrently_and_again_if_added_during_its_reconcile() -> None:
    running, max_running, runs = 0, 0, 0
    may_finish = asyncio.Event()

    async def reconcile(_: str) -> None:
        nonlocal running, max_running, runs
        running, runs = running + 1, runs + 1
        max_running = max(max_running, running)
        await may_finish.wait()
        running -= 1

    queue = WorkQueue("test", reconcile, batch_delay=0.0)
    queue.add("a")
    await eventually_async(lambda: running == 1)
    for _ in range(5):
        queue.add("a")
    assert not queue.idle
    may_finish.set()
    await eventually_async(lambda: queue.idle)
    assert (max_running, runs) == (1, 2)
    await queue.close()


async def test_failures_and_stale_caches_are_retried_and_gone_keys_are_dropped() -> None:
    results: list[str] = []
    plan = iter([ValueError("a defect"), StaleCache(), Gone()])

    async def reconcile(_: str) -> None:
        raise next(plan)

    queue = WorkQueue("test", reconcile, batch_delay=0.0, on_result=lambda result, _: results.append(result))
    queue.add("a")
    await eventually_async(lambda: results == ["error", "outdated", "gone"])
    assert queue.idle
    await queue.close()


async def test_a_request_waits_for_one_decision_however_many_are_due() -> None:
    """A request needs two turns of the event loop: one to be read, one to be answered."""
    decisions: list[str] = []
    waited: list[int] = []

    async def reconcile(key: str) -> None:
        decisions.append(key)

    async def answer_requests() -> None:
        while len(decisions) < 50:
            before = len(decisions)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            waited.append(len(decisions) - before)

    turns = Turns()
    queues = [WorkQueue(name, reconcile, batch_delay=0.0, turns=turns) for name in ("objects", "nodes")]
    for number in range(50):
        queues[number % 2].add(str(number))
    await answer_requests()
    assert max(waited) == 1
    for queue in queues:
        await queue.close()
