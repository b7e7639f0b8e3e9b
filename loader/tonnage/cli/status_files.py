"""Files for probes, and the status file, from which an application reads the result of a load.

The environment of a container can't change after it is created, so the result is passed in a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tonnage.cache.stream import FAILED, format_failure
from tonnage.cli.output import print_stderr, write_atomically

if TYPE_CHECKING:
    import argparse

READY = "ready"
LOADING = "loading"


class StatusFiles(NamedTuple):
    """The paths of the files; empty for none.

    Attributes:
        ready_path: Exists when the pod may start.
        loaded_path: Exists when nothing more will be loaded.
        status_path: Holds the result of the load.
    """

    ready_path: str
    loaded_path: str
    status_path: str

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> StatusFiles:
        """Returns the files that the command line names."""
        return cls(arguments.ready_file or "", arguments.loaded_file or "", arguments.status_file or "")

    def mark_started(self) -> None:
        """Removes the files of an earlier run, because containers may restart, and writes that the load has begun."""
        for path in filter(None, (self.ready_path, self.loaded_path)):
            try:
                Path(path).unlink(missing_ok=True)
            except OSError as error:
                print_stderr(f"tonnage: {path}, of an earlier run, can't be removed: {error.strerror}")
        self._write(self.status_path, f"{LOADING}\n")

    def mark_readable(self, entry: str) -> None:
        """Writes the ready file: the pod may start, and read the weights while they are loaded."""
        self._write(self.ready_path, f"{entry}\n")

    def mark_loaded(self, entry: str) -> None:
        """Writes all files: the weights are loaded."""
        self._write(self.status_path, f"{READY}\n")
        self._write(self.ready_path, f"{entry}\n")
        self._write(self.loaded_path, f"{entry}\n")

    def mark_failed(self, reason: str, message: str) -> None:
        """Writes the status file: ``failed``, the reason and the message, one per line."""
        self._write(self.status_path, format_failure(reason, message))

    def mark_ready_without_weights(self) -> None:
        """Writes the files for probes, so that the pod starts without weights."""
        self._write(self.ready_path, f"{FAILED}\n")
        self._write(self.loaded_path, f"{FAILED}\n")

    @staticmethod
    def _write(path: str, text: str) -> None:
        if not path:
            return
        try:
            write_atomically(Path(path), text.encode())
        except OSError as error:
            print_stderr(f"tonnage: {path} can't be written: {error.strerror}")
