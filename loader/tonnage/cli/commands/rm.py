"""``tonnage rm``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.cache.eviction import evict
from tonnage.cli import output
from tonnage.cli.entry_arguments import cache_from_arguments, select_entries
from tonnage.cli.parser import UsageError
from tonnage.contract.sizes import human_bytes
from tonnage.errors import TonnageError

if TYPE_CHECKING:
    import argparse

    from tonnage.cache.entry import Entry
    from tonnage.cli.invocation import Invocation


def run(arguments: argparse.Namespace, invocation: Invocation) -> int:
    """Removes entries, continuing after failures, and returns the exit code of the first failure.

    Raises:
        InvalidPlan: No entries are given, or a prefix is ambiguous.
        ObjectNotFound: An entry doesn't exist; then nothing is removed.
    """
    results: list[dict[str, object]] = []
    exit_code = 0
    for entry in _entries(arguments):
        try:
            freed = evict(entry)
        except TonnageError as error:
            output.print_error(error, invocation.environment)
            results.append({"name": entry.name, "removed": False, "reason": error.reason, "message": error.message})
            exit_code = exit_code or error.exit_code
            continue
        results.append({"name": entry.name, "removed": True, "freed_bytes": freed})
        if not arguments.json:
            print(f"removed {entry.name}, {human_bytes(freed)}", flush=True)
    if arguments.json:
        output.write_json({"entries": results})
    return exit_code


def _entries(arguments: argparse.Namespace) -> list[Entry]:
    if arguments.all and arguments.entries:
        raise UsageError("ENTRY and --all can't be combined.", command="tonnage rm")
    if arguments.all:
        return cache_from_arguments(arguments).entries()
    if not arguments.entries:
        raise UsageError("No entries given. Pass ENTRY or --all.", command="tonnage rm")
    return select_entries(arguments, ignore_not_found=arguments.ignore_not_found)
