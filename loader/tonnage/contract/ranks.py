"""Lists of ranks as text, such as ``0-3`` or ``0,2,5-7``: on the command line, in annotations and in statuses.

Ranges include both ends.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_RANK: Final = 65_535
"""Highest rank that is accepted, so that a typing error doesn't expand to millions of numbers."""

_RANGE: Final = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


def parse_ranks(text: str, *, highest: int = MAX_RANK) -> tuple[int, ...]:
    """Returns the listed ranks in ascending order, without duplicates.

    Raises:
        ValueError: The text is not a list of ranks, a range runs backwards, or a rank is above ``highest``.
    """
    ranks: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a list of ranks; write for example 0-3 or 0,2,5-7")
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first:
            raise ValueError(f"{text!r} has a range of ranks that runs backwards: {part.strip()}")
        if last > highest:
            raise ValueError(f"{text!r} has a rank above {highest}")
        ranks.update(range(first, last + 1))
    return tuple(sorted(ranks))


def format_ranks(ranks: Iterable[int]) -> str:
    """Returns the shortest text for a set of ranks."""
    runs: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if runs and runs[-1][1] == rank - 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def merge_ranks(some: str | None, more: str | None) -> str | None:
    """Returns the union of two lists. None and the empty text mean all ranks."""
    if not some or not more:
        return None
    try:
        return format_ranks({*parse_ranks(some), *parse_ranks(more)})
    except ValueError:
        return some


def includes_ranks(held: str | None, wanted: str | None) -> bool:
    """Returns whether ``held`` includes all ranks of ``wanted``. None and the empty text mean all ranks."""
    if not held:
        return True
    try:
        return bool(wanted) and set(parse_ranks(wanted or "")) <= set(parse_ranks(held))
    except ValueError:
        return False
