"""The names in the glossary are in the sources, and its terms are used."""

from __future__ import annotations

import functools
import importlib
import re

import pytest

from support.markdown import markdown_files, prose, table_rows
from support.repository import ROOT
from tonnage_operator.api import names

PAGE = ROOT / "docs" / "reference" / "glossary.md"
SOURCES = ("loader/tonnage/**/*.py", "operator/tonnage_operator/**/*.py", "crds/*.yaml")
ROWS = table_rows(PAGE.read_text())
TERMS = [row[0].strip("*") for row in ROWS]
NAMES = [(term, name) for term, row in zip(TERMS, ROWS, strict=True) for name in re.findall(r"`([^`]+)`", row[2])]


@functools.cache
def sources() -> str:
    """Returns the text of loader, operator and CRDs."""
    files = [file for pattern in SOURCES for file in sorted(ROOT.glob(pattern))]
    return "\n".join([*(str(file.relative_to(ROOT)) for file in files), *(file.read_text() for file in files)])


@functools.cache
def in_use() -> str:
    """Returns the text in which terms must occur: the product and every page except the glossary."""
    return "\n".join([sources(), *(prose(page) for page in markdown_files() if page != PAGE)]).lower()


def is_there(name: str) -> bool:
    """Returns whether a name exists: a label or annotation, a package or function of ours, or text in the sources."""
    label, _, value = name.partition("=")
    if label.startswith(f"{names.GROUP}/"):
        return {label, value or label} <= {each for each in vars(names).values() if isinstance(each, str)}
    package, _, member = name.partition(".")
    if package in {"tonnage", "tonnage_operator"} and member:
        folder = next(ROOT.glob(f"*/{package}/{member}"), None)
        return folder is not None or hasattr(importlib.import_module(package), member)
    is_file = name.endswith((".json", ".lock"))
    steps = name.split(".") if re.fullmatch(r"\w+(\.\w+)+", name) and not is_file else [name]
    return all(re.search(rf"(?<![\w-]){re.escape(step)}(?!\w)", sources()) for step in steps)


@pytest.mark.parametrize(("term", "name"), NAMES)
def test_a_name_of_the_glossary_exists(term: str, name: str) -> None:
    assert is_there(name), f"{term}: {name}"


def test_a_name_that_does_not_exist_is_detected() -> None:
    assert not any(map(is_there, ("NoSuchClass", "tonnage.dev/no-such", "tonnage.nothing", "spec.noSuchField")))


@pytest.mark.parametrize("term", TERMS)
def test_a_term_of_the_glossary_is_used(term: str) -> None:
    assert re.search(rf"\b{re.escape(term.lower())}", in_use()), term


def test_every_term_has_one_row_with_a_meaning() -> None:
    assert len(set(TERMS)) == len(TERMS)
    assert all(row[0].startswith("**") and row[1].endswith((".", ")")) for row in ROWS)


def test_the_glossary_is_linked_from_the_first_pages() -> None:
    for page in (ROOT / "CONTRIBUTING.md", ROOT / "docs" / "README.md"):
        assert "reference/glossary.md" in page.read_text(), page.name
