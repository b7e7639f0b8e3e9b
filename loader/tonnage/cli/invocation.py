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
    from tonnage.reporting.post import Endpoint
    from tonnage.reporting.reporter import Reporter

DEBUG_VARIABLE = "TONNAGE_DEBUG"
NODE_VARIABLE = "TONNAGE_NODE"
POD_VARIABLE = "TONNAGE_POD"
PATIENCE = 1.0
"""Seconds that a process stays for its last report where somebody may be waiting for its end."""
LONG_PATIENCE = 3.0
"""Where nobody is, or where the report says what is nowhere else."""
LAST_PATIENCE = 0.5
"""After a signal to end."""
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
        self._reporter: Reporter | None = None

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

    def seconds(self) -> float:
        """Returns how long it has been going on."""
        return round(time.monotonic() - self._began, 3)

    def leave_files(self, report: Report) -> Report:
        """Writes the report to the files that were asked for. Returns it, with the node and the pod in it."""
        report = msgspec.structs.replace(
            report, node=self.environment.get(NODE_VARIABLE, ""), pod=self.environment.get(POD_VARIABLE, "")
        )
        output.leave_report(report, self._file("--report"), self._file("--termination-log"))
        return report

    def leave(self, report: Report) -> Report:
        """Does the same, and prints it as the last line. Nobody reading standard output any more changes nothing."""
        report = self.leave_files(report)
        try:
            output.write_line(msgspec.json.encode(report))
        except BrokenPipeError:
            output.silence_broken_stdout()
        return report

    def start_reporting(self) -> Reporter | None:
        """Begins to report to the operator, where the plan wants that, and returns what does; ``send`` uses it, too."""
        if self.plan is not None and self.plan.reporting is not None:
            from tonnage.reporting.reporter import Reporter

            self._reporter = Reporter(self.plan.reporting, self.template())
        return self._reporter

    @property
    def endpoint(self) -> Endpoint | None:
        """Where reports go; None for nowhere."""
        return None if self._reporter is None else self._reporter.endpoint

    def send(self, report: Report, *, patience: float) -> None:
        """Sends the last report to the operator, where the plan wants that. A failure is said, not raised.

        Args:
            report: What to say.
            patience: How long that may take, in seconds.
        """
        if self._reporter is None:
            return
        asked_to_end = self.cancellation.signal is not None
        failure = self._reporter.send(
            report,
            patience=min(patience, LAST_PATIENCE) if asked_to_end else patience,
            canceled=(lambda: False) if asked_to_end else self.cancellation.canceled,
        )
        if failure is not None:
            output.say(f"tonnage: the report can't be sent to {self._reporter.place}: {failure.message}.")
        self._reporter.close()

    def fail(self, error: TonnageError) -> int:
        """Says everywhere that it failed, and returns the exit code."""
        output.show_error(error, self.environment)
        report = self.failed_report(error)
        if self.command == "load":
            report = self.leave(report)
        elif self.command == "resolve":
            report = self.leave_files(report)
        if self.wants_json and self.command != "load":
            whole = self.command == "resolve"
            output.write_json(report if whole else {name: getattr(report, name) for name in _FAILURE_FIELDS})
        self.send(report, patience=PATIENCE)
        return error.exit_code

    def failed_report(self, error: TonnageError) -> Report:
        """Returns the report of a failure, with what the loader knew and without secrets."""
        report = msgspec.structs.replace(
            self.template(),
            kind=ReportKind.FINISHED if self.command in {"", "load"} else ReportKind.RESOLVED,
            outcome=Outcome.FAILED,
            reason=error.reason.value,
            message=redact(error.message, self.environment),
            remedy=error.remedy,
            seconds=self.seconds(),
            verified="none",
        )
        return msgspec.structs.replace(report, **error.details)

    def template(self) -> Report:
        """Returns what all reports of this run have in common."""
        return Report(
            entry=self.plan.entry if self.plan else "",
            identity=self.plan.identity if self.plan else None,
            node=self.environment.get(NODE_VARIABLE, ""),
            pod=self.environment.get(POD_VARIABLE, ""),
        )

    def _file(self, option: str) -> str:
        """Returns the file that an option names, even if the arguments as a whole can't be understood."""
        name = option.removeprefix("--").replace("-", "_")
        if self.arguments is not None:
            return getattr(self.arguments, name, None) or ""
        words = [*self.words, ""]
        given = [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
        given += [words[at + 1] for at, word in enumerate(words) if word == option]
        return next(iter(given), self.environment.get(f"TONNAGE_{name.upper()}", ""))

    def unexpected(self, error: Exception) -> InternalError:
        """Returns a defect as an error of ours; with ``TONNAGE_DEBUG`` the traceback is printed."""
        if self.environment.get(DEBUG_VARIABLE, "") not in {"", "0"}:
            import traceback

            output.say(redact("".join(traceback.format_exception(error)), self.environment))
        text = str(error).strip().replace("\n", " ")[:500]
        what = f"{type(error).__name__}: {text}" if text else type(error).__name__
        return InternalError(f"Something went wrong that should not ({what}). TONNAGE_DEBUG=1 shows where.")
