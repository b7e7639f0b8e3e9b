"""SIGTERM and SIGINT: the first asks for an orderly end, the second ends at once."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from tonnage.errors import Interrupted

if TYPE_CHECKING:
    from types import FrameType
    from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Cancellation:
    """Whether somebody asked for the end. Use it as a context manager, in the main thread.

    A command that asks ``canceled`` often keeps control and ends where it likes. For all others, and until the first
    question, the signal raises ``Interrupted`` wherever the program happens to be.
    """

    def __init__(self) -> None:
        self.received_signal: int | None = None
        self._polled = False
        self._previous_handlers: dict[int, object] = {}

    def canceled(self) -> bool:
        """Says whether a signal came; from the first call on, signals no longer raise."""
        self._polled = True
        return self.received_signal is not None

    def raising(self) -> None:
        """Makes signals raise again, for a part of the program that doesn't ask."""
        self._polled = False

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._previous_handlers[number] = signal.signal(number, self._handle_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() itself had returned

    def _handle_signal(self, number: int, _: FrameType | None) -> None:
        if self.received_signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            os._exit(128 + number)  # the first process of a container outlives signals that it doesn't handle
        self.received_signal = number
        if not self._polled:
            raise Interrupted(f"{signal.Signals(number).name} asked for an end.")
