"""Pictures are small, well-formed, need nothing from outside, and are what their scripts draw."""

from __future__ import annotations

import re
import runpy
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from support.markdown import ROOT, links, markdown_files, tracked_files

if TYPE_CHECKING:
    from pathlib import Path

PICTURES = [path for path in tracked_files() if path.suffix == ".svg"]
DRAWN = ROOT / "docs" / "images"
LARGEST = 30 * 1024
"""Bytes of a picture that is drawn by hand or script; charts of measurements may have more."""
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_a_picture_is_well_formed_and_needs_nothing_from_outside(picture: Path) -> None:
    root = ET.fromstring(picture.read_text())
    assert root.tag == f"{SVG}svg"
    assert root.get("viewBox"), "without it, the picture can't be scaled"
    text = picture.read_text()
    outside = re.findall(
        r"(?:href|src)\s*=\s*\"(?!#)[^\"]*|url\((?!#)[^)]*|@import|@font-face|<script|<foreignObject", text
    )
    assert not outside
    assert not [each for each in root.iter() if any(name.lower().startswith("on") for name in each.attrib)]


@pytest.mark.parametrize("picture", sorted(DRAWN.glob("*.svg")), ids=lambda path: path.name)
def test_a_drawn_picture_is_small_says_what_it_shows_and_follows_the_readers_scheme(picture: Path) -> None:
    assert picture.stat().st_size <= LARGEST
    root = ET.fromstring(picture.read_text())
    title = root.find(f"{SVG}title")
    assert title is not None
    assert title.text
    assert "prefers-color-scheme: dark" in picture.read_text()


def test_no_text_of_the_architecture_leaves_the_picture() -> None:
    root = ET.fromstring((DRAWN / "architecture.svg").read_text())
    _, _, width, height = (float(part) for part in (root.get("viewBox") or "").split())
    for each in root.iter(f"{SVG}text"):
        # The widest common fonts have about 0.62 of their size a letter.
        size = 15 if each.get("class") == "title" else 13
        length = len(each.text or "") * size * 0.62
        left = float(each.get("x") or 0) - {"middle": length / 2, "end": length}.get(each.get("text-anchor") or "", 0)
        assert left >= 0, each.text
        assert left + length <= width, each.text
        assert 0 < float(each.get("y") or 0) < height, each.text


def test_the_architecture_is_what_its_script_draws() -> None:
    drawn = runpy.run_path(str(DRAWN / "architecture.py"))["picture"]()
    assert (DRAWN / "architecture.svg").read_text() == drawn, "python docs/images/architecture.py"


def test_every_drawn_picture_is_shown_somewhere() -> None:
    shown = {(document.parent / target).resolve() for document in markdown_files() for target in links(document)}
    assert set(DRAWN.glob("*.svg")) <= shown
