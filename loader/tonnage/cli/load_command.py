"""``tonnage load``."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from tonnage.cli import output
from tonnage.cli.progress import progress_view
from tonnage.cli.request import cache_folder, requested_plan
from tonnage.cli.summary import load_summary

if TYPE_CHECKING:
    import argparse

    from tonnage.cache.locks import FileLock
    from tonnage.cli.invocation import Invocation


def run(arguments: argparse.Namespace, invocation: Invocation) -> int:
    """Loads, prints the report, and holds the entry where that is wanted.

    Raises:
        TonnageError: It can't be loaded.
    """
    cache = cache_folder(arguments)
    plan = invocation.plan = requested_plan(arguments)
    from tonnage.loading import load_plan

    with progress_view(arguments.progress) as view:
        result = load_plan(
            plan,
            cache=cache,
            environment=invocation.environment,
            on_progress=view.show,
            canceled=invocation.cancellation.canceled,
            keep_lock=arguments.hold,
        )
    if output.is_terminal(sys.stderr) and arguments.progress != "off":
        output.say(load_summary(result.report))
    invocation.leave(result.report)
    if result.lock is not None:
        _hold(result.lock, invocation)
    return 0


def _hold(lock: FileLock, invocation: Invocation) -> None:
    """Becomes the holder, unless the signal that ends one has come already; none is lost in between."""
    from tonnage.cli.hold import ENDING, become_holder

    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    if not invocation.cancellation.canceled():
        become_holder([lock.fileno()])
