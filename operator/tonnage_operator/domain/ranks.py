"""Lists of ranks as people write them: ``0-3`` or ``0,2,5-7``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

LIMIT: Final = 4096
"""Ranks are below it."""

_RANGE: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


def parse_ranks(text: str) -> tuple[int, ...]:
    """Returns the ranks, sorted.

    Raises:
        ValueError: It isn't such a list.
    """
    ranks: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last >= LIMIT:
            raise ValueError(f"{text!r} is not a list of ranks such as 0-3 or 0,2; below {LIMIT}")
        ranks.update(range(first, last + 1))
    return tuple(sorted(ranks))


def format_ranks(ranks: Iterable[int]) -> str:
    """Returns the shortest text for some ranks."""
    runs: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if runs and runs[-1][1] == rank - 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def merge_ranks(some: str | None, more: str | None) -> str | None:
    """Returns the ranks of two lists together; None and the empty text stand for all ranks."""
    if not some or not more:
        return None
    try:
        return format_ranks({*parse_ranks(some), *parse_ranks(more)})
    except ValueError:
        return some


def includes_ranks(held: str | None, wanted: str | None) -> bool:
    """Returns whether all that is wanted is held; None and the empty text stand for all ranks."""
    if not held:
        return True
    try:
        return bool(wanted) and set(parse_ranks(wanted or "")) <= set(parse_ranks(held))
    except ValueError:
        return False
