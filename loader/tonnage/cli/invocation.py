"""One run of a command: its arguments and environment, and the reports that it writes and sends."""

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
    from collections.abc import MutableMapping, Sequence

    from tonnage.cli.signals import Cancellation
    from tonnage.contract.plan import Plan
    from tonnage.reporting.client import Endpoint
    from tonnage.reporting.reporter import Reporter

DEBUG_VARIABLE = "TONNAGE_DEBUG"
NODE_VARIABLE = "TONNAGE_NODE"
POD_VARIABLE = "TONNAGE_POD"
REPORT_TIMEOUT = 1.0
"""Timeout in seconds of the final report if a caller may wait for this process to exit."""
LONG_REPORT_TIMEOUT = 3.0
"""Timeout in seconds if nothing waits for the exit, or if the report is the only copy of the result."""
INTERRUPTED_REPORT_TIMEOUT = 0.5
"""Timeout in seconds after SIGTERM or SIGINT."""
_FAILURE_FIELDS = ("outcome", "reason", "message", "remedy")
"""The fields of a failure's JSON in commands other than load and resolve."""


class Invocation:
    """One run of a command.

    Attributes:
        argv: The command line, without the program's name.
        environment: This process's environment at its start.
        cancellation: Whether SIGTERM or SIGINT was received.
        arguments: The parsed command line; None if parsing failed.
        plan: The plan of a load or resolve; None until it is read.
    """

    def __init__(self, argv: Sequence[str], environment: MutableMapping[str, str], cancellation: Cancellation) -> None:
        self.argv = argv
        self.environment = environment
        self.cancellation = cancellation
        self.arguments: argparse.Namespace | None = None
        self.plan: Plan | None = None
        self._started = time.monotonic()
        self._reporter: Reporter | None = None

    @property
    def command(self) -> str:
        """The command's name; empty if there is none."""
        if self.arguments is not None:
            return str(self.arguments.command)
        return next((word for word in self.argv if word in help_texts.COMMANDS), "")

    @property
    def wants_json(self) -> bool:
        """Whether standard output is JSON."""
        json = "--json" in self.argv if self.arguments is None else getattr(self.arguments, "json", False)
        return self.command == "load" or bool(json)

    def elapsed_seconds(self) -> float:
        """Returns the seconds since the start, rounded to milliseconds."""
        return round(time.monotonic() - self._started, 3)

    def write_report(self, report: Report) -> Report:
        """Writes ``--report`` and ``--termination-log``. Returns the report with node and pod added."""
        report = msgspec.structs.replace(
            report, node=self.environment.get(NODE_VARIABLE, ""), pod=self.environment.get(POD_VARIABLE, "")
        )
        output.write_report_files(report, self._output_path("--report"), self._output_path("--termination-log"))
        return report

    def emit_report(self, report: Report) -> Report:
        """Writes the report files, and prints the report to standard output. A broken pipe is ignored."""
        report = self.write_report(report)
        try:
            output.write_line(msgspec.json.encode(report))
        except BrokenPipeError:
            output.redirect_stdout_to_devnull()
        return report

    def start_reporting(self) -> Reporter | None:
        """Starts the reporter if the plan has ``reporting``, and returns it. ``send_report`` uses it too."""
        if self.plan is not None and self.plan.reporting is not None:
            from tonnage.reporting.reporter import Reporter

            self._reporter = Reporter(self.plan.reporting, self.base_report())
        return self._reporter

    @property
    def endpoint(self) -> Endpoint | None:
        """Where reports are sent; None if they aren't."""
        return None if self._reporter is None else self._reporter.endpoint

    def send_report(self, report: Report, *, timeout: float) -> None:
        """Sends the final report to the operator, if the plan has ``reporting``. Failures are logged, not raised.

        Args:
            report: The final report.
            timeout: In seconds; shorter after a signal.
        """
        if self._reporter is None:
            return
        interrupted = self.cancellation.received_signal is not None
        failure = self._reporter.send_final(
            report,
            timeout=min(timeout, INTERRUPTED_REPORT_TIMEOUT) if interrupted else timeout,
            canceled=(lambda: False) if interrupted else self.cancellation.canceled,
        )
        if failure is not None:
            output.print_stderr(
                f"tonnage: the report can't be sent to {self._reporter.display_url}: {failure.message}."
            )
        self._reporter.close()

    def report_failure(self, error: TonnageError) -> int:
        """Prints, writes and sends the report of a failure, and returns the exit code."""
        output.print_error(error, self.environment)
        report = self.failure_report(error)
        if self.command == "load":
            report = self.emit_report(report)
        elif self.command == "resolve":
            report = self.write_report(report)
        if self.wants_json and self.command != "load":
            whole = self.command == "resolve"
            output.write_json(report if whole else {name: getattr(report, name) for name in _FAILURE_FIELDS})
        self.send_report(report, timeout=REPORT_TIMEOUT)
        return error.exit_code

    def failure_report(self, error: TonnageError) -> Report:
        """Returns the report of a failure, with the error's details and without secrets."""
        report = msgspec.structs.replace(
            self.base_report(),
            kind=ReportKind.FINISHED if self.command in {"", "load"} else ReportKind.RESOLVED,
            outcome=Outcome.FAILED,
            reason=error.reason.value,
            message=redact(error.message, self.environment),
            remedy=error.remedy,
            seconds=self.elapsed_seconds(),
            verified="none",
        )
        return msgspec.structs.replace(report, **error.details)

    def base_report(self) -> Report:
        """Returns a report with the fields that all reports of this run share."""
        return Report(
            entry=self.plan.entry if self.plan else "",
            identity=self.plan.identity if self.plan else None,
            node=self.environment.get(NODE_VARIABLE, ""),
            pod=self.environment.get(POD_VARIABLE, ""),
        )

    def _output_path(self, option: str) -> str:
        """Returns the file that an option names, even if the command line as a whole is invalid."""
        name = option.removeprefix("--").replace("-", "_")
        if self.arguments is not None:
            return getattr(self.arguments, name, None) or ""
        words = [*self.argv, ""]
        given = [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
        given += [words[at + 1] for at, word in enumerate(words) if word == option]
        return next(iter(given), self.environment.get(f"TONNAGE_{name.upper()}", ""))

    def to_internal_error(self, error: Exception) -> InternalError:
        """Converts an unexpected exception; prints the traceback if ``TONNAGE_DEBUG`` is set."""
        if self.environment.get(DEBUG_VARIABLE, "") not in {"", "0"}:
            import traceback

            output.print_stderr(redact("".join(traceback.format_exception(error)), self.environment))
        text = str(error).strip().replace("\n", " ")[:500]
        what = f"{type(error).__name__}: {text}" if text else type(error).__name__
        return InternalError(f"Internal error ({what}). Set TONNAGE_DEBUG=1 for a traceback.")
