"""Progress output."""

from __future__ import annotations

import io
import json
import sys

import pytest

from tonnage.cli.progress_output import JsonLines, LazyProgressBar, NullProgress, progress_line, progress_view
from tonnage.contract import Progress

LOADING = Progress(
    phase="loading",
    loaded_bytes=3 << 30,
    total_bytes=12 << 30,
    bytes_per_second=1.52e9,
    remaining_seconds=6.4,
    tensors_verified=112,
    tensors=291,
    retries=2,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_once_a_second_and_at_every_change_of_phase() -> None:
    lines: list[str] = []
    clock = Clock()
    view = JsonLines(lines.append, clock)
    for phase, now in [
        ("resolving", 100.0), ("loading", 100.1), ("loading", 100.2), ("loading", 101.0), ("loading", 101.2),
        ("publishing", 101.3), ("publishing", 101.4),
    ]:  # fmt: skip
        clock.now = now
        view.show(Progress(phase=phase, loaded_bytes=int(now * 10)))
    assert [(json.loads(line)["phase"], json.loads(line)["loaded_bytes"]) for line in lines] == [
        ("resolving", 1000), ("loading", 1001), ("loading", 1012), ("publishing", 1013),
    ]  # fmt: skip


def test_a_line_always_has_all_fields() -> None:
    assert json.loads(progress_line(Progress(phase="waiting"))) == {
        "kind": "progress", "phase": "waiting", "loaded_bytes": 0, "total_bytes": 0, "bytes_per_second": 0,
        "remaining_seconds": -1.0, "tensors_verified": 0, "tensors": 0, "retries": 0,
        "waiting_for": "", "notes": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "view"),
    [("bar", LazyProgressBar), ("json", JsonLines), ("off", NullProgress), ("auto", JsonLines), (None, JsonLines)],
)
def test_auto_is_json_without_a_terminal(kind: str | None, view: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert type(progress_view(kind)) is view


def test_auto_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert type(progress_view("auto")) is LazyProgressBar


def test_a_bar_appears_only_when_there_is_something_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with LazyProgressBar() as bar:
        bar.show(Progress(phase="resolving"))
        assert bar._bar is None
        bar.show(Progress(phase="waiting"))
        assert bar._bar is not None


def test_a_slow_resolve_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with LazyProgressBar(delay=0.0) as bar:
        bar.show(Progress(phase="resolving"))
        assert bar._timer is not None
        bar._on_delay_elapsed()
        assert bar._bar is not None


def test_the_bar_shows_phase_bytes_rate_time_left_tensors_and_retries() -> None:
    from rich.console import Console

    from tonnage.cli.progress_bar import ProgressBar

    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=160, legacy_windows=False, color_system=None)
    with ProgressBar(console) as bar:
        bar.show(LOADING)
    text = drawn.getvalue()
    for part in ("Loading", "25%", "3.0 GiB / 12.0 GiB", "1.52 GB/s", "0:06 left", "112/291 verified", "2 retries"):
        assert part in text, part


def test_a_clock_time_has_hours_only_if_needed() -> None:
    from tonnage.cli.progress_bar import format_clock_time

    assert [format_clock_time(seconds) for seconds in (0, 8.4, 750, 3723)] == ["0:00", "0:08", "12:30", "1:02:03"]
