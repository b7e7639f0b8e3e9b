"""Telling a person what happens, and how long each step took."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Progress:
    """Silent; ``PrintedProgress`` is the one that tells."""

    def report(self, sentence: str) -> None:
        """Says something."""

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announces a step and, at its end, the seconds that it took."""
        started = time.monotonic()
        yield
        self.report(f"{time.monotonic() - started:5.1f} s  {name}")


class PrintedProgress(Progress):
    """Tells on stderr, line by line."""

    def report(self, sentence: str) -> None:
        """Prints a line."""
        print(sentence, file=sys.stderr, flush=True)
