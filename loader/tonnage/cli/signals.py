"""SIGTERM and SIGINT: the first signal ends a command in order, the second ends it immediately."""

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
    """Records SIGTERM and SIGINT. Use it as a context manager on the main thread.

    Until the first call of ``canceled``, a signal raises ``Interrupted`` in the running code. After that it doesn't:
    the command polls ``canceled``, and ends at a point of its choice.
    """

    def __init__(self) -> None:
        self.received_signal: int | None = None
        self._polled = False
        self._previous_handlers: dict[int, object] = {}

    def canceled(self) -> bool:
        """Returns whether a signal was received; from the first call on, signals no longer raise."""
        self._polled = True
        return self.received_signal is not None

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._previous_handlers[number] = signal.signal(number, self._handle_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() returned

    def _handle_signal(self, number: int, _: FrameType | None) -> None:
        if self.received_signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            os._exit(128 + number)  # PID 1 of a container survives signals without a handler
        self.received_signal = number
        if not self._polled:
            raise Interrupted(f"Interrupted by {signal.Signals(number).name}.")
