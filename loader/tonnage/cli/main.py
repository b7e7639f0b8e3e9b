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
from tonnage.cli.invocation import Invocation
from tonnage.cli.parser import parse
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


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit code.

    Args:
        words: The command line without the program's name; that of this process by default.
    """
    output.replace_missing_streams()
    with Cancellation() as cancellation:
        invocation = Invocation(sys.argv[1:] if words is None else words, dict(os.environ), cancellation)
        try:
            return _run(invocation)
        except BrokenPipeError:
            output.silence_broken_stdout()
            return output.BROKEN_PIPE_EXIT


def _run(invocation: Invocation) -> int:
    error: TonnageError
    try:
        arguments = invocation.arguments = parse(invocation.words, invocation.environment)
        command = cast("Command", importlib.import_module(f"tonnage.cli.{arguments.command}_command"))
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
        error = invocation.unexpected(failure)
    else:
        sys.stdout.flush()  # here, where nobody reading any more is expected
        return exit_code
    invocation.cancellation.canceled()  # from here on a signal must not cut the report off
    return invocation.fail(error)


if __name__ == "__main__":
    sys.exit(main())
