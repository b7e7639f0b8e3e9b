"""The progress bar on a terminal."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from tonnage.contract.sizes import human_bytes

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from tonnage.contract.report import Progress

_TITLES = {
    "resolving": "Resolving",
    "waiting": "Waiting for another loader",
    "loading": "Loading",
    "serializing": "Serializing",
    "uploading": "Uploading",
    "verifying": "Verifying",
    "publishing": "Publishing",
}


class ProgressBar:
    """One line: phase, bar, bytes, rate, time left, tensors verified, retries.

    Args:
        console: Where it is drawn; standard error by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._lock = threading.Lock()
        self._rich = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[facts]}"),
            console=self._console,
            transient=True,
            expand=True,
            refresh_per_second=8,
        )
        self._task = self._rich.add_task("Starting", total=None, facts="")

    def show(self, progress: Progress) -> None:
        """Sets the latest state; it is drawn 8 times a second."""
        with self._lock:
            self._rich.update(
                self._task,
                description=phase_title(progress),
                total=progress.total_bytes or None,
                completed=progress.loaded_bytes,
                facts=format_figures(progress),
            )

    def __enter__(self) -> Self:
        self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rich.stop()


def phase_title(progress: Progress) -> str:
    """Returns the title of the bar."""
    if progress.waiting_for:
        return f"Waiting for {progress.waiting_for}"
    return _TITLES.get(progress.phase, progress.phase.capitalize())


def format_figures(progress: Progress) -> str:
    """Returns the figures beside the bar: ``3.1 / 14.2 GiB  1.52 GB/s  0:08 left  112/291 verified  2 retries``."""
    parts = []
    if progress.total_bytes:
        parts.append(f"{human_bytes(progress.loaded_bytes)} / {human_bytes(progress.total_bytes)}")
    if progress.bytes_per_second > 0:
        parts.append(f"{progress.bytes_per_second / 1e9:.2f} GB/s")
    if progress.remaining_seconds >= 0:
        parts.append(f"{format_clock_time(progress.remaining_seconds)} left")
    if progress.tensors:
        parts.append(f"{progress.tensors_verified}/{progress.tensors} verified")
    if progress.retries:
        parts.append("1 retry" if progress.retries == 1 else f"{progress.retries} retries")
    if progress.notes:
        parts.append("1 note" if len(progress.notes) == 1 else f"{len(progress.notes)} notes")
    return "  ".join(parts)


def format_clock_time(seconds: float) -> str:
    """Returns seconds as ``m:ss`` or ``h:mm:ss``: ``0:08``, ``12:30``, ``1:02:03``."""
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{remainder:02}" if hours else f"{minutes}:{remainder:02}"
