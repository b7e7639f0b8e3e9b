"""Each protection that the page on security claims names the tests that hold it, and these exist."""

from __future__ import annotations

import re

import pytest

from support.repository import ROOT

PAGE = (ROOT / "docs" / "concepts" / "security.md").read_text()
HELD = re.compile(r"`(tests/[a-z0-9_/]+\.py)`")
NAMED = sorted(set(HELD.findall(PAGE)))


def rows(heading: str) -> list[list[str]]:
    """Returns the cells of each row of the first table after a heading."""
    section = PAGE.partition(f"\n{heading}\n")[2]
    lines = section[section.index("\n|") :].lstrip("\n").split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


@pytest.mark.parametrize("path", NAMED)
def test_a_named_test_exists(path: str) -> None:
    assert re.search(r"^(async )?def test_", (ROOT / path).read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("heading", "column"),
    [("## Permissions by role", 3), ("## Threats", 2), ("## What a tenant tries", 2), ("## Trust in reports", 2)],
)
def test_each_claim_in_a_table_names_a_test(heading: str, column: int) -> None:
    found = rows(heading)
    assert found
    without = [row[0] for row in found if not HELD.search(row[column])]
    assert without in ([], ["administrator (Helm)"])
