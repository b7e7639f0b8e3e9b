"""The page on integrity names each kind of checksum and each source, with tests that exist."""

from __future__ import annotations

import re

import pytest

from support.markdown import section, table_rows
from support.repository import ROOT
from tonnage.contract import ChecksumAlgorithm

PAGE = ROOT / "docs" / "concepts" / "integrity.md"
SOURCES = ("S3", "URL", "hub", "`.tensors`", "companions")
CHECKSUMS = table_rows(section(PAGE, "Which checksum of a source is used"))
ROWS = table_rows(section(PAGE, "Each source, its checks and their tests"))


def functions() -> set[str]:
    return {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", file.read_text(), re.MULTILINE)
    }


@pytest.mark.parametrize("algorithm", ChecksumAlgorithm)
def test_every_algorithm_is_in_the_table_of_checksums(algorithm: ChecksumAlgorithm) -> None:
    cells = " ".join(row[0] for row in CHECKSUMS).replace("-", "")
    assert re.search(rf"\b{algorithm.words}\b", cells)


def test_every_row_of_the_table_of_checksums_names_files_of_tests_that_exist() -> None:
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    for row in CHECKSUMS:
        named = set(re.findall(r"`(test_\w+\.py)`", row[-1]))
        assert named, row[0]
        assert named <= files, row[0]


@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_source_has_a_row(source: str) -> None:
    assert any(source in row[0] for row in ROWS)


def test_every_row_of_the_table_of_sources_names_tests_that_exist() -> None:
    defined = functions()
    for row in ROWS:
        named = set(re.findall(r"`(test_\w+)`", row[-1]))
        assert named, row[0]
        assert named <= defined, row[0]
