"""A command's output: lines on standard output and standard error, report files, termination messages."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tonnage.cli.redaction import redact
from tonnage.contract.report import encode_report, termination_message

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

    from tonnage.contract.report import Report
    from tonnage.errors import TonnageError

BROKEN_PIPE_EXIT = 141
"""The exit code that a shell reports for a program ended by SIGPIPE."""


def is_terminal(stream: TextIO | None) -> bool:
    """Returns whether ``stream`` is an open terminal."""
    with contextlib.suppress(ValueError):  # closed
        return stream is not None and stream.isatty()
    return False


def print_stderr(text: str) -> None:
    """Writes one line to standard error. Errors are ignored: it may be closed."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def flush() -> None:
    """Writes what is still buffered. Errors are ignored: both streams may be closed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def write_line(data: bytes) -> None:
    """Writes one line of JSON to standard output and flushes it.

    Raises:
        OSError: It can't be written; ``BrokenPipeError`` if the reader has closed the pipe.
    """
    sys.stdout.write(data.decode() + "\n")
    sys.stdout.flush()


def write_json(value: object) -> None:
    """Writes a dict, list or struct as one line of JSON to standard output.

    Raises:
        OSError: See ``write_line``.
    """
    write_line(msgspec.json.encode(value))


def print_error(error: TonnageError, environment: Mapping[str, str]) -> None:
    """Prints the reason, the message without secrets, and the remedy to standard error."""
    print_stderr(f"tonnage: {error.reason.value}: {redact(error.message, environment)}\n  → {error.remedy}")


def write_report_files(report: Report, path: str, termination_log: str) -> None:
    """Writes the report and the termination message, each if its path isn't empty. Failures are logged, not raised."""
    if path:
        try:
            write_atomically(Path(path), encode_report(report) + b"\n")
        except OSError as error:
            print_stderr(f"tonnage: the report can't be written to {path}: {error.strerror}")
    if termination_log:
        try:
            # In place, without a rename: Kubernetes bind-mounts this file.
            Path(termination_log).write_bytes(termination_message(report))
        except OSError as error:
            print_stderr(f"tonnage: the termination message can't be written to {termination_log}: {error.strerror}")


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file atomically: readers see the old or the new content. Pipes and devices are written directly.

    Raises:
        OSError: It can't be written.
    """
    try:
        special = not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        special = False
    if special:
        path.write_bytes(data)
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def replace_missing_streams() -> None:
    """Opens /dev/null as standard output and standard error if the process was started without them.

    Descriptors 1 and 2 are opened too: otherwise the next opened file would get the number and receive the output.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            sink = os.open(os.devnull, os.O_WRONLY)
            if sink != number:
                os.dup2(sink, number)
                os.close(sink)
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115  # never closed


def redirect_stdout_to_devnull() -> None:
    """Prevents a BrokenPipeError from Python's flush of standard output at exit."""
    with contextlib.suppress(OSError, ValueError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)
