"""Progress on standard error: a bar on a terminal, otherwise a line of JSON per second."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Protocol

import msgspec

from tonnage.cli.output import is_terminal, print_stderr

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from tonnage.contract.report import Progress

LINE_INTERVAL_SECONDS = 1.0
_BAR_PHASES = frozenset({"waiting", "loading", "verifying", "publishing", "serializing", "uploading"})
BAR_DELAY_SECONDS = 0.7
"""Seconds of resolving before a bar is shown. A hit takes less, so it doesn't import rich."""


class ProgressView(Protocol):
    """Shows progress. A context manager; several threads may call ``show``."""

    def show(self, progress: Progress) -> None:
        """Sets the latest state."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def progress_view(kind: str | None) -> ProgressView:
    """Returns the view for ``--progress``; ``auto`` or None: a bar on a terminal, otherwise JSON."""
    if kind in {None, "auto"}:
        kind = "bar" if is_terminal(sys.stderr) else "json"
    if kind == "bar":
        return LazyProgressBar()
    return JsonLines() if kind == "json" else NullProgress()


class NullProgress:
    """Shows nothing."""

    def show(self, progress: Progress) -> None:
        """Ignores the state."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return


class JsonLines:
    """Writes a line of JSON for each change of phase, and one per second within a phase.

    Args:
        write: Called with each line.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self, write: Callable[[str], None] = print_stderr, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._phase = ""
        self._next = 0.0

    def show(self, progress: Progress) -> None:
        """Writes a line if one is due."""
        now = self._clock()
        if progress.phase == self._phase and now < self._next:
            return
        self._phase = progress.phase
        self._next = now + LINE_INTERVAL_SECONDS
        self._write(progress_line(progress))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return


class LazyProgressBar:
    """A bar that is imported and shown only when a transfer or a wait begins.

    Args:
        delay: Seconds after which resolving shows a bar too.
    """

    def __init__(self, delay: float = BAR_DELAY_SECONDS) -> None:
        self._delay = delay
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._latest: Progress | None = None
        self._bar: ProgressView | None = None
        self._closed = False

    def show(self, progress: Progress) -> None:
        """Updates the bar; shows it first when a transfer or a wait for another loader begins."""
        with self._lock:
            self._latest = progress
            if self._bar is not None or progress.phase in _BAR_PHASES:
                self._draw(progress)

    def __enter__(self) -> Self:
        self._timer = threading.Timer(self._delay, self._on_delay_elapsed)
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._bar is not None:
                self._bar.__exit__(kind, error, trace)

    def _on_delay_elapsed(self) -> None:
        with self._lock:
            if self._latest is not None and not self._closed:
                self._draw(self._latest)

    def _draw(self, progress: Progress) -> None:
        if self._bar is None:
            from tonnage.cli.progress_bar import ProgressBar

            self._bar = ProgressBar()
            self._bar.show(progress)
            self._bar.__enter__()
        self._bar.show(progress)


def progress_line(progress: Progress) -> str:
    """Returns the state as one line of JSON, always with all fields."""
    fields = {name: getattr(progress, name) for name in progress.__struct_fields__}
    fields["bytes_per_second"] = round(progress.bytes_per_second)
    fields["remaining_seconds"] = round(progress.remaining_seconds, 1)
    return msgspec.json.encode({"kind": "progress", **fields}).decode()
