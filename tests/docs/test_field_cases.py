"""The page of cases from the field has each case with tests that exist, and others of its kind."""

from __future__ import annotations

import re

import pytest

from support.markdown import section, table_rows
from support.repository import ROOT

PAGE = ROOT / "docs" / "reference" / "field-cases.md"
CASES = {
    *(f"C{number}" for number in (1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 13, 14, 18)), "C13b",
    *(f"D{number}" for number in (1, 2, 3, 4, 5, 6, 9, 12, 16, 19, 21, 24, 26)), "D3b",
    "F1", "F2", "F3", "F5", "F11", "F12",
    *(f"K{number}" for number in (*range(1, 13), 19, 20)), "K8b",
    *(f"U{number}" for number in range(1, 15)),
}  # fmt: skip
NOT_TESTED = {"K19"}
"""Cases for which there is no such node here."""
KINDS = re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE)
ROWS = table_rows(PAGE.read_text())


def defined_tests() -> set[str]:
    """Returns the names of all test functions."""
    files = (ROOT / "tests").rglob("test_*.py")
    return {
        name for file in files for name in re.findall(r"^(?:async )?def (test_\w+)\(", file.read_text(), re.MULTILINE)
    }


def test_every_case_has_one_row() -> None:
    numbers = [row[0] for row in ROWS if row[0]]
    assert sorted(numbers) == sorted(CASES)


def test_every_row_names_tests_that_exist() -> None:
    defined = defined_tests()
    for case, situation, _, tests in ROWS:
        named = re.findall(r"`(\w+)`", tests)
        assert named or case in NOT_TESTED, situation
        assert not set(named) - defined, situation


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_more_cases_than_those_reported(kind: str) -> None:
    rows = table_rows(section(PAGE, kind))
    others = [row for row in rows if not row[0]]
    assert len(others) >= 2 or len(rows) > 10, kind
