"""Every link in the documentation has a target."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from support.markdown import anchors, links, markdown_files, prose
from support.repository import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS = markdown_files()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_have_existing_files_and_headings(document: Path) -> None:
    for target in links(document):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.is_relative_to(ROOT), f"{target} is outside of the repository"
        assert file.exists(), target
        if anchor:
            assert file.suffix == ".md", f"{target}: only Markdown has anchors"
            assert anchor in anchors(file), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_external_links_are_https(document: Path) -> None:
    assert not [target for target in links(document) if target.startswith("http:")]


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    named = {(index.parent / target.partition("#")[0]).resolve() for target in links(index) if ":" not in target}
    pages = {path for path in DOCUMENTS if path.is_relative_to(ROOT / "docs") and path != index}
    folders = {path.parent for path in named if path.name == "README.md"}
    assert not [str(page) for page in pages if page not in named and page.parent not in folders - {index.parent}]


def test_files_named_in_code_exist() -> None:
    of_others = ROOT / "docs" / "concepts" / "comparison.md"
    pattern = re.compile(
        r"`((?:docs|hack|operator|loader|charts|crds|examples|tests|requirements|benchmarks)/[\w./-]+)`"
    )
    missing = [
        f"{document.relative_to(ROOT)}: {name}"
        for document in DOCUMENTS
        if document != of_others
        for name in pattern.findall(prose(document))
        if not (ROOT / name).exists()
    ]
    assert not missing
