"""One run of the command, and what a failure of it leaves behind."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from tonnage.cli import help_texts, output
from tonnage.cli.redaction import redact
from tonnage.contract.report import Outcome, Report, ReportKind
from tonnage.errors import InternalError, TonnageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from tonnage.cli.signals import Cancellation
    from tonnage.contract.plan import Plan

DEBUG_VARIABLE = "TONNAGE_DEBUG"
_FAILURE_FIELDS = ("outcome", "reason", "message", "remedy")
"""What other commands than load and resolve say of a failure to programs."""


class Invocation:
    """What a command is run with.

    Attributes:
        words: The command line, without the program's name.
        environment: Of this process, at its start.
        cancellation: Whether a signal asked for an end.
        arguments: The command line as parsed; None if that failed.
        plan: What a load or resolve is about, as soon as it is known.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], cancellation: Cancellation) -> None:
        self.words = words
        self.environment = environment
        self.cancellation = cancellation
        self.arguments: argparse.Namespace | None = None
        self.plan: Plan | None = None
        self._began = time.monotonic()

    @property
    def command(self) -> str:
        """The command's name; empty where there is none."""
        if self.arguments is not None:
            return str(self.arguments.command)
        return next((word for word in self.words if word in help_texts.COMMANDS), "")

    @property
    def wants_json(self) -> bool:
        """Whether a program reads standard output."""
        json = "--json" in self.words if self.arguments is None else getattr(self.arguments, "json", False)
        return self.command == "load" or bool(json)

    @property
    def report_path(self) -> str:
        """Where a copy of the report goes; empty for nowhere."""
        return getattr(self.arguments, "report", None) or ""

    def seconds(self) -> float:
        """Returns how long it has been going on."""
        return round(time.monotonic() - self._began, 3)

    def leave(self, report: Report) -> None:
        """Writes a load's report wherever it is to go. Nobody reading standard output any more changes nothing."""
        output.leave_report(report, self.report_path, self.environment)
        try:
            output.write_line(msgspec.json.encode(report))
        except BrokenPipeError:
            output.silence_broken_stdout()

    def fail(self, error: TonnageError) -> int:
        """Says everywhere that it failed, and returns the exit code."""
        output.show_error(error, self.environment)
        report = self.failed_report(error)
        if self.command == "load":
            self.leave(report)
        elif self.wants_json:
            whole = self.command == "resolve"
            output.write_json(report if whole else {name: getattr(report, name) for name in _FAILURE_FIELDS})
        return error.exit_code

    def failed_report(self, error: TonnageError) -> Report:
        """Returns the report of a failure, with what the loader knew and without secrets."""
        report = Report(
            kind=ReportKind.FINISHED if self.command in {"", "load"} else ReportKind.RESOLVED,
            outcome=Outcome.FAILED,
            reason=error.reason.value,
            message=redact(error.message, self.environment),
            remedy=error.remedy,
            seconds=self.seconds(),
            verified="none",
            entry=self.plan.entry if self.plan else "",
            identity=self.plan.identity if self.plan else None,
        )
        return msgspec.structs.replace(report, **error.details)

    def unexpected(self, error: Exception) -> InternalError:
        """Returns a defect as an error of ours; with ``TONNAGE_DEBUG`` the traceback is printed."""
        if self.environment.get(DEBUG_VARIABLE, "") not in {"", "0"}:
            import traceback

            output.say(redact("".join(traceback.format_exception(error)), self.environment))
        text = str(error).strip().replace("\n", " ")[:500]
        what = f"{type(error).__name__}: {text}" if text else type(error).__name__
        return InternalError(f"Something went wrong that should not ({what}). TONNAGE_DEBUG=1 shows where.")
