"""When a key is worked on: at once while little happens, together where much does, again after a failure."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from operator_support.waiting import eventually_async
from tonnage_operator.controller.rate_limiter import RateLimiter
from tonnage_operator.controller.workqueue import Gone, StaleCache, WorkQueue


@given(st.lists(st.floats(0, 3), max_size=60))
def test_a_rate_limiter_allows_a_burst_and_then_its_rate(gaps: list[float]) -> None:
    now = [100.0]
    pace = RateLimiter(burst=3, interval=2.0, clock=lambda: now[0])
    runs: list[float] = []
    for gap in gaps:
        now[0] += gap
        if not pace.delay("a"):
            pace.consume("a")
            runs.append(now[0])
    for index, first in enumerate(runs):
        for last in runs[index:]:
            count = sum(first <= run <= last for run in runs)
            assert count <= 3 + (last - first) / 2 + 1e-6


def test_a_rate_limiter_returns_the_delay_per_key() -> None:
    now = [0.0]
    pace = RateLimiter(burst=1, interval=5.0, clock=lambda: now[0])
    pace.consume("a")
    assert (pace.delay("a"), pace.delay("b")) == (5.0, 0.0)
    now[0] = 4.0
    assert pace.delay("a") == 1.0
    pace.drop("a")
    assert pace.delay("a") == 0.0


async def test_a_burst_of_keys_is_processed_concurrently() -> None:
    seen: Counter[str] = Counter()

    async def reconcile(key: str) -> None:
        seen[key] += 1

    workers = WorkQueue("test", reconcile, batch_delay=0.0, rate_limiter=RateLimiter(burst=2, interval=60.0))
    for _ in range(200):
        workers.add("a")
        await asyncio.sleep(0)
    workers.add("b")
    await eventually_async(lambda: seen["b"] == 1)
    assert 1 <= seen["a"] <= 2
    assert not workers.idle, "what was held back is not forgotten"
    await workers.close()


async def test_a_key_is_never_processed_concurrently_and_again_if_added_meanwhile() -> None:
    running, most, runs = 0, 0, 0
    go_on = asyncio.Event()

    async def reconcile(_: str) -> None:
        nonlocal running, most, runs
        running, runs = running + 1, runs + 1
        most = max(most, running)
        await go_on.wait()
        running -= 1

    workers = WorkQueue("test", reconcile, batch_delay=0.0)
    workers.add("a")
    await eventually_async(lambda: running == 1)
    for _ in range(5):
        workers.add("a")
    assert not workers.idle
    go_on.set()
    await eventually_async(lambda: workers.idle)
    assert (most, runs) == (1, 2)
    await workers.close()


async def test_failures_and_stale_caches_are_retried_and_gone_keys_are_dropped() -> None:
    results: list[str] = []
    plan = iter([ValueError("a defect"), StaleCache(), Gone()])

    async def reconcile(_: str) -> None:
        raise next(plan)

    workers = WorkQueue("test", reconcile, batch_delay=0.0, on_result=lambda result, _: results.append(result))
    workers.add("a")
    await eventually_async(lambda: results == ["error", "outdated", "gone"])
    assert workers.idle
    await workers.close()
