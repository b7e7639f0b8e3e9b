"""The ready file, for a startup probe, and the status file, from which an application reads the result of a load.

The environment of a container can't change after it is created, so the result is passed in a file.
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
    """The paths of the two files; empty for none."""

    ready_path: str
    status_path: str

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> StatusFiles:
        """Returns the files that the command line names."""
        return cls(arguments.ready_file or "", arguments.status_file or "")

    def remove_stale_ready_file(self) -> None:
        """Removes the ready file of an earlier run; containers may restart."""
        if self.ready_path:
            try:
                Path(self.ready_path).unlink(missing_ok=True)
            except OSError as error:
                print_stderr(f"tonnage: the ready file {self.ready_path} can't be removed: {error.strerror}")

    def mark_loaded(self, entry: str) -> None:
        """Writes both files: the weights are loaded."""
        self._write(self.status_path, f"{READY}\n")
        self._write(self.ready_path, f"{entry}\n")

    def mark_failed(self, reason: str, message: str) -> None:
        """Writes the status file: ``failed``, the reason and the message, one per line."""
        self._write(self.status_path, f"{FAILED}\n{reason}\n{' '.join(message.split())}\n")

    def mark_ready_without_weights(self) -> None:
        """Writes the ready file, so that the pod starts without weights."""
        self._write(self.ready_path, f"{FAILED}\n")

    @staticmethod
    def _write(path: str, text: str) -> None:
        if not path:
            return
        try:
            write_atomically(Path(path), text.encode())
        except OSError as error:
            print_stderr(f"tonnage: {path} can't be written: {error.strerror}")
