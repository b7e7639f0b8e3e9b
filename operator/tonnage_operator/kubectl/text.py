"""Plain text for terminals and pipes: columns, sizes, ages, bars. Foreign text is escaped and bounded. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tonnage.errors import escape_unprintable
from tonnage_operator.domain import units

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CELL: Final = 80
"""Characters of a cell of a table."""
MAX_SENTENCE: Final = 1200
"""Characters of a message."""
BAR_WIDTH: Final = 24


def clean(value: object, limit: int = MAX_SENTENCE) -> str:
    """Returns text from outside on one line, at most ``limit`` characters, which can't control a terminal."""
    text = escape_unprintable(" ".join(str(value)[: 4 * limit].split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns lines with aligned columns, as kubectl prints them."""
    cells = [[clean(cell, MAX_CELL) or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    return [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in ([*header], *cells)
    ]


def bar(done: float, *, width: int = BAR_WIDTH) -> str:
    """Returns a bar and a percentage for a fraction from 0 to 1."""
    fraction = min(1.0, max(0.0, done))
    full = int(fraction * width)
    return f"{'━' * full}{'─' * (width - full)} {fraction:4.0%}"


def age(time: object, now: datetime) -> str:
    """Returns how long ago a time of Kubernetes was, as kubectl does; empty if it is none."""
    try:
        seconds = max(0, int((now - units.parse_time(str(time))).total_seconds()))
    except ValueError:
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def utc_now() -> datetime:
    return datetime.now(UTC)
