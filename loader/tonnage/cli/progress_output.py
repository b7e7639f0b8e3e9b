"""How a load goes, on standard error: a bar where a person looks, a JSON line a second where a program does."""

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
_BAR_PHASES = frozenset({"waiting", "loading", "verifying", "publishing"})
BAR_DELAY_SECONDS = 0.7
"""How long resolving may take before a bar says so: a hit is over before, and needs no bar."""


class ProgressView(Protocol):
    """Something that shows progress. To be used as a context manager; ``show`` may be called by several threads."""

    def show(self, progress: Progress) -> None:
        """Takes the newest state."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def progress_view(kind: str | None) -> ProgressView:
    """Returns the view that ``--progress`` names; ``auto`` (or None) is a bar on a terminal and JSON elsewhere."""
    if kind in {None, "auto"}:
        kind = "bar" if is_terminal(sys.stderr) else "json"
    if kind == "bar":
        return LazyProgressBar()
    return JsonLines() if kind == "json" else NullProgress()


class NullProgress:
    """Shows nothing."""

    def show(self, progress: Progress) -> None:
        """Does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return


class JsonLines:
    """One line for each change of phase, and one a second in between.

    Args:
        write: Where lines go.
        clock: Seconds that never go back.
    """

    def __init__(
        self, write: Callable[[str], None] = print_stderr, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._phase = ""
        self._next = 0.0

    def show(self, progress: Progress) -> None:
        """Writes the line, if it is time for one."""
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
    """A bar that appears, and is imported, only once there is something to wait for.

    Args:
        delay: Seconds after which also resolving gets a bar.
    """

    def __init__(self, delay: float = BAR_DELAY_SECONDS) -> None:
        self._delay = delay
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._latest: Progress | None = None
        self._bar: ProgressView | None = None
        self._closed = False

    def show(self, progress: Progress) -> None:
        """Passes the state on; the bar appears when bytes move or another loader is waited for."""
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
