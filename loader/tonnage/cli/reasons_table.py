"""``python -m tonnage.cli.reasons_table`` generates ``docs/reference/reasons.md`` from the error classes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tonnage.errors import error_classes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage.errors import TonnageError

_INTRODUCTION = """\
# Reasons

Every failure of `tonnage` has one stable name. It is the `reason` of the report, the word after `tonnage:` on
standard error, and the reason in the operator's conditions and events. Scripts may rely on names and exit codes:
their meaning does not change between releases. Exit code 0 is success (`loaded` or `hit`); 128 and above come from
signals, as in any shell.

This page is generated from the error classes by `python -m tonnage.cli.reasons_table > docs/reference/reasons.md`.

"""


def reason_rows() -> list[tuple[str, int, str, str]]:
    """Returns reason, exit code, meaning and remedy of every error, by exit code."""
    rows = [(cls.reason.value, cls.exit_code, _meaning(cls), cls.remedy) for cls in error_classes().values()]
    return sorted(rows, key=lambda row: (row[1], row[0]))


def exit_code_lines() -> list[str]:
    """Returns the exit codes for a help text, such as ``10 AccessDenied``, two in a line."""
    cells = [f"{code:>3} {reason}" for reason, code, _, _ in reason_rows()]
    half = (len(cells) + 1) // 2
    right = [*cells[half:], ""]
    return [f"  {left:<28}{other}".rstrip() for left, other in zip(cells[:half], right, strict=False)]


def markdown() -> str:
    """Returns the whole page."""
    return _INTRODUCTION + "".join(_table(reason_rows()))


def _table(rows: Iterable[tuple[str, int, str, str]]) -> Iterable[str]:
    yield "| Reason | Exit code | What it means | What to do |\n|---|---:|---|---|\n"
    for reason, code, meaning, remedy in rows:
        yield f"| `{reason}` | {code} | {_cell(meaning)} | {_cell(remedy)} |\n"


def _meaning(cls: type[TonnageError]) -> str:
    return " ".join((cls.__doc__ or "").split())


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    sys.stdout.write(markdown())
