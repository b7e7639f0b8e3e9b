"""The command ``tonnage``: reads the command line, runs the command, and turns errors into sentences and exit codes.

A command's module, with everything that it needs, is imported only when it is run: a cache hit should cost little more
than Python's own start.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Protocol, cast

from tonnage.cli import output
from tonnage.cli.command_line import parse_command_line
from tonnage.cli.invocation import Invocation
from tonnage.cli.signals import Cancellation
from tonnage.errors import Interrupted, TonnageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


class Command(Protocol):
    """What a command's module offers."""

    def run(self, arguments: argparse.Namespace, invocation: Invocation) -> int:
        """Does it and returns the exit code.

        Raises:
            TonnageError: It can't be done.
        """
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit code.

    Args:
        argv: The command line without the program's name; that of this process by default.
    """
    output.replace_missing_streams()
    with Cancellation() as cancellation:
        invocation = Invocation(sys.argv[1:] if argv is None else argv, dict(os.environ), cancellation)
        try:
            return _run(invocation)
        except BrokenPipeError:
            output.redirect_stdout_to_devnull()
            return output.BROKEN_PIPE_EXIT


def _run(invocation: Invocation) -> int:
    error: TonnageError
    try:
        arguments = invocation.arguments = parse_command_line(invocation.argv, invocation.environment)
        command = cast("Command", importlib.import_module(f"tonnage.cli.commands.{arguments.command}"))
        exit_code = command.run(arguments, invocation)
    except SystemExit as leaving:  # help or the version, which argparse has printed
        sys.stdout.flush()
        return leaving.code if isinstance(leaving.code, int) else 0
    except BrokenPipeError:
        raise
    except TonnageError as failure:
        error = failure
    except KeyboardInterrupt:
        error = Interrupted("SIGINT asked for an end.")
    except Exception as failure:  # noqa: BLE001  # whatever it is, the caller gets a report and an exit code
        error = invocation.to_internal_error(failure)
    else:
        sys.stdout.flush()  # here, where nobody reading any more is expected
        return exit_code
    invocation.cancellation.canceled()  # from here on a signal must not cut the report off
    return invocation.report_failure(error)


if __name__ == "__main__":
    sys.exit(main())
