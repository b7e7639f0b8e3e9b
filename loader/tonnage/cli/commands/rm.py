"""``tonnage rm``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.cache.eviction import evict
from tonnage.cli import output
from tonnage.cli.command_line import UsageError
from tonnage.cli.entry_arguments import cache_from_arguments, select_entries
from tonnage.contract.sizes import human_bytes
from tonnage.errors import TonnageError

if TYPE_CHECKING:
    import argparse

    from tonnage.cache.entry import Entry
    from tonnage.cli.invocation import Invocation


def run(arguments: argparse.Namespace, invocation: Invocation) -> int:
    """Removes entries. One that can't be removed does not keep the others; the first failure's code is returned.

    Raises:
        InvalidPlan: The words name nothing, or too much.
        ObjectNotFound: An entry isn't there; then nothing is removed.
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
        raise UsageError("Either --all or entries, not both.", command="tonnage rm")
    if arguments.all:
        return cache_from_arguments(arguments).entries()
    if not arguments.entries:
        raise UsageError("Which entries? Name them, or give --all.", command="tonnage rm")
    return select_entries(arguments, ignore_not_found=arguments.ignore_not_found)
