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
    from tonnage.reporting.client import Endpoint
    from tonnage.reporting.reporter import Reporter

DEBUG_VARIABLE = "TONNAGE_DEBUG"
NODE_VARIABLE = "TONNAGE_NODE"
POD_VARIABLE = "TONNAGE_POD"
REPORT_TIMEOUT = 1.0
"""Seconds that a process stays for its last report where somebody may be waiting for its end."""
LONG_REPORT_TIMEOUT = 3.0
"""Where nobody is, or where the report says what is nowhere else."""
INTERRUPTED_REPORT_TIMEOUT = 0.5
"""After a signal to end."""
_FAILURE_FIELDS = ("outcome", "reason", "message", "remedy")
"""What other commands than load and resolve say of a failure to programs."""


class Invocation:
    """What a command is run with.

    Attributes:
        argv: The command line, without the program's name.
        environment: Of this process, at its start.
        cancellation: Whether a signal asked for an end.
        argv: The command line as parsed; None if that failed.
        plan: What a load or resolve is about, as soon as it is known.
    """

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], cancellation: Cancellation) -> None:
        self.argv = argv
        self.environment = environment
        self.cancellation = cancellation
        self.arguments: argparse.Namespace | None = None
        self.plan: Plan | None = None
        self._started = time.monotonic()
        self._reporter: Reporter | None = None

    @property
    def command(self) -> str:
        """The command's name; empty where there is none."""
        if self.arguments is not None:
            return str(self.arguments.command)
        return next((word for word in self.argv if word in help_texts.COMMANDS), "")

    @property
    def wants_json(self) -> bool:
        """Whether a program reads standard output."""
        json = "--json" in self.argv if self.arguments is None else getattr(self.arguments, "json", False)
        return self.command == "load" or bool(json)

    def elapsed_seconds(self) -> float:
        """Returns how long it has been going on."""
        return round(time.monotonic() - self._started, 3)

    def write_report(self, report: Report) -> Report:
        """Writes the report to the files that were asked for. Returns it, with the node and the pod in it."""
        report = msgspec.structs.replace(
            report, node=self.environment.get(NODE_VARIABLE, ""), pod=self.environment.get(POD_VARIABLE, "")
        )
        output.write_report_files(report, self._output_path("--report"), self._output_path("--termination-log"))
        return report

    def emit_report(self, report: Report) -> Report:
        """Does the same, and prints it as the last line. Nobody reading standard output any more changes nothing."""
        report = self.write_report(report)
        try:
            output.write_line(msgspec.json.encode(report))
        except BrokenPipeError:
            output.redirect_stdout_to_devnull()
        return report

    def start_reporting(self) -> Reporter | None:
        """Begins to report to the operator, where the plan wants that, and returns what does; ``send`` uses it, too."""
        if self.plan is not None and self.plan.reporting is not None:
            from tonnage.reporting.reporter import Reporter

            self._reporter = Reporter(self.plan.reporting, self.base_report())
        return self._reporter

    @property
    def endpoint(self) -> Endpoint | None:
        """Where reports go; None for nowhere."""
        return None if self._reporter is None else self._reporter.endpoint

    def send_report(self, report: Report, *, timeout: float) -> None:
        """Sends the last report to the operator, where the plan wants that. A failure is said, not raised.

        Args:
            report: What to say.
            timeout: How long that may take, in seconds.
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
        """Says everywhere that it failed, and returns the exit code."""
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
        """Returns the report of a failure, with what the loader knew and without secrets."""
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
        """Returns what all reports of this run have in common."""
        return Report(
            entry=self.plan.entry if self.plan else "",
            identity=self.plan.identity if self.plan else None,
            node=self.environment.get(NODE_VARIABLE, ""),
            pod=self.environment.get(POD_VARIABLE, ""),
        )

    def _output_path(self, option: str) -> str:
        """Returns the file that an option names, even if the arguments as a whole can't be understood."""
        name = option.removeprefix("--").replace("-", "_")
        if self.arguments is not None:
            return getattr(self.arguments, name, None) or ""
        words = [*self.argv, ""]
        given = [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
        given += [words[at + 1] for at, word in enumerate(words) if word == option]
        return next(iter(given), self.environment.get(f"TONNAGE_{name.upper()}", ""))

    def to_internal_error(self, error: Exception) -> InternalError:
        """Returns a defect as an error of ours; with ``TONNAGE_DEBUG`` the traceback is printed."""
        if self.environment.get(DEBUG_VARIABLE, "") not in {"", "0"}:
            import traceback

            output.print_stderr(redact("".join(traceback.format_exception(error)), self.environment))
        text = str(error).strip().replace("\n", " ")[:500]
        what = f"{type(error).__name__}: {text}" if text else type(error).__name__
        return InternalError(f"Something went wrong that should not ({what}). TONNAGE_DEBUG=1 shows where.")
