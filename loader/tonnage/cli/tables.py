"""Tables: with lines and colors on a terminal, otherwise plain columns."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from tonnage.cli.output import is_terminal
from tonnage.errors import escape_unprintable

if TYPE_CHECKING:
    from collections.abc import Sequence


class Column(NamedTuple):
    """One column. ``number``: align to the right; ``foldable``: wrap on a narrow terminal."""

    title: str
    number: bool = False
    foldable: bool = False


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table to standard output.

    Raises:
        BrokenPipeError: The reader has closed the pipe.
    """
    safe = [[escape_unprintable(cell) for cell in row] for row in rows]
    if is_terminal(sys.stdout):
        _print_rich(columns, safe)
    else:
        sys.stdout.write(plain_table(columns, safe))


def plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """Returns the table as text: a line of titles, columns two spaces apart, no cell truncated."""
    cells = [[column.title for column in columns], *rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if column.number else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        lines.append("  ".join(padded).rstrip() + "\n")
    return "".join(lines)


def format_age(timestamp: float, now: float | None = None) -> str:
    """Returns the time since a Unix time in one unit: ``8s``, ``5m``, ``3h``, ``12d``; ``-`` for 0."""
    if timestamp <= 0:
        return "-"
    seconds = max(0, int((time.time() if now is None else now) - timestamp))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _print_rich(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.number else "left",
            no_wrap=not column.foldable,
            overflow="fold" if column.foldable else "ellipsis",
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)
