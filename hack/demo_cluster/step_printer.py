"""Prints the numbered steps of both demos, `make demo` and `make demo-cluster`."""

from __future__ import annotations

import sys


class DemoFailed(Exception):
    """A check of the demo failed."""


class StepPrinter:
    """Prints numbered steps, with details and commands indented below them.

    Args:
        steps: The number of steps.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._step = 0
        self._bold, self._dim, self._plain = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")

    def print_step(self, sentence: str) -> None:
        self._step += 1
        print(f"\n{self._bold}{self._step}/{self._steps} {sentence}{self._plain}", flush=True)

    def print_details(self, text: str) -> None:
        print("\n".join(f"    {line}".rstrip() for line in text.splitlines()), flush=True)

    def print_command(self, line: str) -> None:
        print(f"    {self._dim}$ {line}{self._plain}", flush=True)


def expect(condition: bool, problem: str) -> None:  # noqa: FBT001  # like assert
    """Raises DemoFailed unless the condition holds."""
    if not condition:
        raise DemoFailed(problem)
