"""The command ``tonnage``: parses the command line, runs the command, and turns errors into messages and exit codes.

A command's module and its dependencies are imported only when the command runs, so that a cache hit takes little longer
than starting Python.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
from typing import TYPE_CHECKING

from tonnage.cli import output
from tonnage.cli.command_line import parse_command_line
from tonnage.cli.invocation import Invocation
from tonnage.cli.signals import Cancellation
from tonnage.errors import Interrupted, TonnageError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence
    from typing import NoReturn

YOUNG_OBJECTS = 50_000
"""How many new objects there are before the interpreter looks for unreachable ones: by default 700, and a start, whose
objects all stay, spends a tenth of its time on that."""


def command() -> NoReturn:
    """Runs this process's command line, and ends the process.

    Interpreter and C library don't end in order: a thread that still sends a report or computes a hash would crash when
    OpenSSL's memory is freed, and to look at all objects takes 10 ms.
    """
    gc.set_threshold(YOUNG_OBJECTS)
    exit_code = main()
    atexit._run_exitfuncs()  # noqa: SLF001  # they remove temporary files
    output.flush()
    os._exit(exit_code)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit code.

    Args:
        argv: The command line without the program's name; by default this process's.
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
        run: Callable[[Namespace, Invocation], int]
        run = importlib.import_module(f"tonnage.cli.commands.{arguments.command}").run
        exit_code = run(arguments, invocation)
    except SystemExit as printed:  # argparse has printed help or the version
        sys.stdout.flush()
        return printed.code if isinstance(printed.code, int) else 0
    except BrokenPipeError:
        raise
    except TonnageError as failure:
        error = failure
    except KeyboardInterrupt:
        error = Interrupted("Interrupted by SIGINT.")
    except Exception as failure:  # noqa: BLE001  # the caller gets a report and an exit code for any error
        error = invocation.to_internal_error(failure)
    else:
        sys.stdout.flush()  # here, where a broken pipe is handled
        return exit_code
    invocation.cancellation.canceled()  # from now on a signal must not interrupt the report
    return invocation.report_failure(error)


if __name__ == "__main__":
    command()
