"""The command ``kubectl-tonnage``, which kubectl finds as its plugin ``tonnage``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from tonnage_operator.kubectl.arguments import build_parser
from tonnage_operator.kubectl.text import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

FAILED: Final = 3
"""Exit code of a request that failed; 1: something is wrong or waits; 2: the command line."""
_INTERRUPTED: Final = 130
_COMPLETION: Final = """\
#!/usr/bin/env sh
# Completions of `kubectl tonnage`; kubectl runs this file, named kubectl_complete-tonnage, in a folder of PATH.
exec kubectl-tonnage __complete "$@"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["__complete"]:
        from tonnage_operator.kubectl.completion import complete

        return complete(words[1:])
    options = build_parser().parse_args(words)
    if options.command == "completion":
        sys.stdout.write(_COMPLETION)
        return 0
    try:
        return _run(options)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _run(options: object) -> int:
    try:
        from tonnage_operator.kubectl import commands
        from tonnage_operator.kubectl.cluster import Cluster, ClusterError
    except ModuleNotFoundError as error:
        return _fail(f"The package {error.name} is missing.", "Install it with: pip install 'tonnage[kubectl]'", FAILED)
    try:
        cluster = Cluster(getattr(options, "kubeconfig", ""), getattr(options, "context", ""))
        return int(getattr(commands, getattr(options, "command", ""))(options, cluster))
    except commands.UsageProblem as error:
        return _fail(str(error), "See `kubectl tonnage --help`.", 2)
    except ClusterError as error:
        return _fail(error.message, error.next_step, FAILED)


def _fail(message: str, next_step: str, code: int) -> int:
    sys.stderr.write(f"kubectl tonnage: {clean(message)}\n  → {clean(next_step)}\n")
    return code
