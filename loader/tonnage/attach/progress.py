"""Reports the progress of a copy: to a callback, or as a progress bar if it takes more than a second."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Literal, Self

from tonnage.errors import InvalidPlan

if TYPE_CHECKING:
    from collections.abc import Callable

    Progress = Callable[[int, int], None] | Literal["auto", "off"]

_BAR_DELAY = 1.0
"""Seconds before the bar appears."""


def check_progress(progress: object) -> None:
    """Validates a ``progress=`` argument.

    Raises:
        InvalidPlan: It is neither a callback nor ``auto`` nor ``off``.
    """
    if not callable(progress) and progress not in ("auto", "off"):
        raise InvalidPlan(f'progress={progress!r} is neither "auto" nor "off" nor a function of two numbers.')


class ProgressReporter:
    """Reports one copy's progress. Use it as a context manager, which removes the bar.

    ``progress`` is a callback with (bytes done, bytes in all), ``auto`` for a bar if standard error is a terminal and
    the copy takes longer than a second, or ``off``.
    """

    def __init__(self, progress: Progress, total: int, *, description: str) -> None:
        self._callback = progress if callable(progress) else None
        self._bar_enabled = progress == "auto" and sys.stderr.isatty()
        self._total = total
        self._description = description
        self._finished_bytes = 0
        self._last = -1
        self._began = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def finish_phase(self, size: int) -> None:
        """Adds ``size`` bytes to the finished phases; ``update`` counts from there."""
        self._finished_bytes += size
        self.update(0)

    def update(self, phase_bytes: int) -> None:
        """Reports the bytes that are done in the current phase."""
        done = min(self._finished_bytes + phase_bytes, self._total)
        if done == self._last:
            return
        self._last = done
        if self._callback is not None:
            self._callback(done, self._total)
        elif self._bar_enabled and (self._bar is not None or time.monotonic() - self._began > _BAR_DELAY):
            self._show(done)

    def _show(self, done: int) -> None:
        if self._bar is None:
            from rich.console import Console  # most copies never show a bar
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self._description, total=self._total)
            self._bar.start()
        self._bar.update(self._task, completed=done)
