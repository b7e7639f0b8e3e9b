from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tonnage.transfer.progress_meter import ProgressMeter

if TYPE_CHECKING:
    from tonnage.contract import Progress


def progress(meter: ProgressMeter, now: float) -> Progress:
    return meter.progress(now, verified=0, tensors=1, retries=0)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    return 100.0


def test_no_remaining_time_is_estimated_from_the_first_bytes(start: float) -> None:
    meter = ProgressMeter(total=1000, resumed=0)
    assert progress(meter, start + 2).remaining_seconds == -1
    meter.add_received(1)
    assert progress(meter, start + 2.2).remaining_seconds == -1
    meter.add_received(99)
    assert progress(meter, start + 3.0).remaining_seconds == pytest.approx(9, abs=0.1)


def test_time_before_the_first_byte_does_not_lower_the_rate(start: float) -> None:
    meter = ProgressMeter(total=1000, resumed=0)
    for moment in (1, 2):
        progress(meter, start + moment)
    meter.add_received(100)
    assert progress(meter, start + 3).bytes_per_second == pytest.approx(100)
