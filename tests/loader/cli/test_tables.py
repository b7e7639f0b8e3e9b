"""Tables, plain and on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.cli.tables import Column, format_age, plain_table, print_table
from tonnage.errors import escape_unprintable

if TYPE_CHECKING:
    import pytest

COLUMNS = (Column("NAME", foldable=True), Column("BYTES", number=True), Column("NOTE"))


def test_plain_columns_are_aligned_and_not_truncated() -> None:
    rows = [["a" * 120, "7", ""], ["b", "1,000", "x"]]
    title, first, second = plain_table(COLUMNS, rows).splitlines()
    assert title.split() == ["NAME", "BYTES", "NOTE"]
    assert first == "a" * 120 + "      7"
    assert second.split() == ["b", "1,000", "x"]
    assert title.index("BYTES") == second.index("1,000")


def test_a_pipe_gets_no_colors(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, [["n", "1", "x"]])
    assert "\x1b" not in capsys.readouterr().out


def test_control_characters_in_names_are_escaped() -> None:
    assert escape_unprintable("a\x1b[31m\nb\u202e") == r"a\x1b[31m\nb\u202e"
    assert escape_unprintable("größe 層") == "größe 層"


def test_ages_are_in_their_largest_unit() -> None:
    assert [format_age(1000, 1000 + seconds) for seconds in (0, 8, 119, 120, 7199, 7200, 172_800)] == [
        "0s", "8s", "119s", "2m", "119m", "2h", "2d",
    ]  # fmt: skip
    assert format_age(0) == "-"
    assert format_age(1000, 900) == "0s"
