"""The first request for tensor data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.contract import Limits
from tonnage.transfer.worker_pool import WorkerPool

if TYPE_CHECKING:
    import pytest

    from support.load_harness import IsPartRequest, LoadHarness


def test_it_does_not_wait_for_the_start_of_the_other_workers(
    harness: LoadHarness, is_part_request: IsPartRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = WorkerPool.start

    def started(pool: WorkerPool, number: int) -> None:
        if number > 0:
            harness.server.wait_for(lambda server: any(map(is_part_request, server.requests)))
        start(pool, number)

    monkeypatch.setattr(WorkerPool, "start", started)
    report = harness.load(limits=Limits(workers=3, part_size=64 << 10))
    harness.assert_loaded(report)
