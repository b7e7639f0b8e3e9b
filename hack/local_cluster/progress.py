"""Reports the steps of starting a cluster and how long each took."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Progress:
    """Reports steps.

    Args:
        printed: Print lines to standard error; otherwise do nothing.
    """

    def __init__(self, *, printed: bool = False) -> None:
        self._printed = printed

    def report(self, message: str) -> None:
        if self._printed:
            print(message, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Reports the duration of a step when it ends."""
        started = time.monotonic()
        yield
        self.report(f"{time.monotonic() - started:5.1f} s  {name}")
