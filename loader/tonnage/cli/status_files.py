"""The two files by which a load tells its pod how far it is: one says "go on", one says how it ended.

The environment of a container can't change once it is made, so a file is the honest way to tell an application that it
starts without its weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tonnage.cli.output import print_stderr, write_atomically

if TYPE_CHECKING:
    import argparse

READY = "ready"
FAILED = "failed"


class StatusFiles(NamedTuple):
    """Their paths; empty for those that nobody wants."""

    ready_path: str
    status_path: str

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> StatusFiles:
        """Returns those that the command line names."""
        return cls(arguments.ready_file or "", arguments.status_file or "")

    def remove_stale_ready_file(self) -> None:
        """Takes back what an earlier run in the same pod said: a container may be restarted."""
        if self.ready_path:
            try:
                Path(self.ready_path).unlink(missing_ok=True)
            except OSError as error:
                print_stderr(f"tonnage: the ready file {self.ready_path} can't be removed: {error.strerror}")

    def mark_loaded(self, entry: str) -> None:
        """Says that the weights are there."""
        self._write(self.status_path, f"{READY}\n")
        self._write(self.ready_path, f"{entry}\n")

    def mark_failed(self, reason: str, message: str) -> None:
        """Says that they are not: the word, the reason and the sentence, a line each."""
        self._write(self.status_path, f"{FAILED}\n{reason}\n{' '.join(message.split())}\n")

    def mark_ready_without_weights(self) -> None:
        """Lets the pod start without them."""
        self._write(self.ready_path, f"{FAILED}\n")

    @staticmethod
    def _write(path: str, text: str) -> None:
        if not path:
            return
        try:
            write_atomically(Path(path), text.encode())
        except OSError as error:
            print_stderr(f"tonnage: {path} can't be written: {error.strerror}")
