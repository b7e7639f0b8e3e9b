"""The two files by which a load tells its pod how far it is: one says "go on", one says how it ended.

The environment of a container can't change once it is made, so a file is the honest way to tell an application that it
starts without its weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tonnage.cli.output import say, write_file

if TYPE_CHECKING:
    import argparse

READY = "ready"
FAILED = "failed"


class PodFiles(NamedTuple):
    """Their paths; empty for those that nobody wants."""

    ready: str
    status: str

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> PodFiles:
        """Returns those that the command line names."""
        return cls(arguments.ready_file or "", arguments.status_file or "")

    def begin(self) -> None:
        """Takes back what an earlier run in the same pod said: a container may be restarted."""
        if self.ready:
            try:
                Path(self.ready).unlink(missing_ok=True)
            except OSError as error:
                say(f"tonnage: the ready file {self.ready} can't be removed: {error.strerror}")

    def loaded(self, entry: str) -> None:
        """Says that the weights are there."""
        self._write(self.status, f"{READY}\n")
        self._write(self.ready, f"{entry}\n")

    def failed(self, reason: str, message: str) -> None:
        """Says that they are not: the word, the reason and the sentence, a line each."""
        self._write(self.status, f"{FAILED}\n{reason}\n{' '.join(message.split())}\n")

    def go_on(self) -> None:
        """Lets the pod start without them."""
        self._write(self.ready, f"{FAILED}\n")

    @staticmethod
    def _write(path: str, text: str) -> None:
        if not path:
            return
        try:
            write_file(Path(path), text.encode())
        except OSError as error:
            say(f"tonnage: {path} can't be written: {error.strerror}")
