"""``tonnage ls``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.cache.listing import list_entries
from tonnage.cache.medium import inspect_medium
from tonnage.cli import output
from tonnage.cli.entry_arguments import cache_from_arguments
from tonnage.cli.tables import Column, format_age, print_table
from tonnage.contract.sizes import human_bytes

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from tonnage.cache.listing import EntryInfo
    from tonnage.cli.invocation import Invocation
    from tonnage.contract import Medium

_COLUMNS = (
    Column("ENTRY"),
    Column("STATE"),
    Column("SIZE", number=True),
    Column("FILES", number=True),
    Column("LAYOUT"),
    Column("VERIFIED"),
    Column("USED", number=True),
    Column("IN USE BY", foldable=True),
)


def run(arguments: argparse.Namespace, _: Invocation) -> int:
    """Lists the entries of the cache.

    Raises:
        InvalidPlan: The cache isn't given or isn't a folder.
        CacheNotWritable: It can't be read.
    """
    cache = cache_from_arguments(arguments)
    rows = list_entries(cache)
    medium = inspect_medium(cache.root)
    if arguments.json:
        output.write_json({"cache": str(cache.root), "medium": medium, "entries": rows})
        return 0
    if rows:
        print_table(_COLUMNS, [_cells(row) for row in rows])
    for row in rows:
        if row.problem:
            print(f"{row.name}: {row.problem}")
    print(summary_line(str(cache.root), rows, medium))
    return 0


def summary_line(cache: str, rows: Sequence[EntryInfo], medium: Medium) -> str:
    """Returns the last line: the cache's medium, total size and free space."""
    count = "no entries" if not rows else "1 entry" if len(rows) == 1 else f"{len(rows)} entries"
    total = human_bytes(sum(row.bytes for row in rows))
    kind = f"{medium.filesystem}, {medium.pages} pages" if medium.pages else medium.filesystem
    kind = kind.replace("always pages", "huge pages")
    return f"{cache} ({kind}): {count}, {total}; {human_bytes(medium.free_bytes)} free"


def format_holders(row: EntryInfo) -> str:
    """Returns the processes that use an entry; ``-`` if it isn't in use."""
    if not row.in_use:
        return "-"
    seen = ", ".join(f"{holder.command or 'pid'} ({holder.pid})" for holder in row.holders)
    return seen or "a process outside this container"


def _cells(row: EntryInfo) -> list[str]:
    return [
        row.name,
        row.state.value,
        human_bytes(row.bytes),
        str(row.files),
        row.layout or "-",
        row.verified or "-",
        format_age(row.last_used),
        format_holders(row),
    ]
