"""What a command leaves for others to read: lines on standard output and error, report files, termination messages."""

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
"""What a shell says of a program that SIGPIPE ended."""


def is_terminal(stream: TextIO | None) -> bool:
    """Says whether somebody looks at ``stream``."""
    with contextlib.suppress(ValueError):  # closed
        return stream is not None and stream.isatty()
    return False


def print_stderr(text: str) -> None:
    """Writes one line to standard error. It may be closed: that is nobody's failure."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def write_line(data: bytes) -> None:
    """Writes one line of JSON to standard output and flushes it.

    Raises:
        OSError: It can't be written; ``BrokenPipeError`` when nobody reads any more.
    """
    sys.stdout.write(data.decode() + "\n")
    sys.stdout.flush()


def write_json(value: object) -> None:
    """Writes ``value`` as one line of JSON to standard output; dicts, lists and structs.

    Raises:
        OSError: See ``write_line``.
    """
    write_line(msgspec.json.encode(value))


def print_error(error: TonnageError, environment: Mapping[str, str]) -> None:
    """Tells a person what went wrong, and what to do."""
    print_stderr(f"tonnage: {error.reason.value}: {redact(error.message, environment)}\n  → {error.remedy}")


def write_report_files(report: Report, path: str, termination_log: str) -> None:
    """Writes the report and the termination message, each where a path is given. A failure is said, not raised."""
    if path:
        try:
            write_atomically(Path(path), encode_report(report) + b"\n")
        except OSError as error:
            print_stderr(f"tonnage: the report can't be written to {path}: {error.strerror}")
    if termination_log:
        try:
            # In place: Kubernetes mounts this very file.
            Path(termination_log).write_bytes(termination_message(report))
        except OSError as error:
            print_stderr(f"tonnage: the termination message can't be written to {termination_log}: {error.strerror}")


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file at once: readers see the old one or the whole new one. Pipes and devices are just written to.

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
    """Gives a process that was started without standard output or error one that goes nowhere.

    The descriptor is taken too: otherwise the next file that is opened would be standard output.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            sink = os.open(os.devnull, os.O_WRONLY)
            if sink != number:
                os.dup2(sink, number)
                os.close(sink)
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115  # for good


def redirect_stdout_to_devnull() -> None:
    """Keeps Python's own flush at exit from complaining that nobody reads."""
    with contextlib.suppress(OSError, ValueError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)
