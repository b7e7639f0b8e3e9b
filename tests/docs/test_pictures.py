"""Images are small, well-formed, self-contained, and up to date with their scripts."""

from __future__ import annotations

import re
import runpy
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from support.markdown import links, markdown_files, tracked_files
from support.repository import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PICTURES = [path for path in tracked_files() if path.suffix == ".svg"]
DRAWN = ROOT / "docs" / "images"
LARGEST = 30 * 1024
"""Maximum bytes of a drawn image; charts of measurements may be larger."""
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_an_image_is_well_formed_and_self_contained(picture: Path) -> None:
    root = ET.fromstring(picture.read_text())
    assert root.tag == f"{SVG}svg"
    assert root.get("viewBox"), "an image without viewBox can't be scaled"
    text = picture.read_text()
    outside = re.findall(
        r"(?:href|src)\s*=\s*\"(?!#)[^\"]*|url\((?!#)[^)]*|@import|@font-face|<script|<foreignObject", text
    )
    assert not outside
    assert not [each for each in root.iter() if any(name.lower().startswith("on") for name in each.attrib)]


@pytest.mark.parametrize("picture", sorted(DRAWN.glob("*.svg")), ids=lambda path: path.name)
def test_a_drawn_image_is_small_has_a_title_and_supports_dark_mode(picture: Path) -> None:
    assert picture.stat().st_size <= LARGEST
    root = ET.fromstring(picture.read_text())
    title = root.find(f"{SVG}title")
    assert title is not None
    assert title.text
    assert "prefers-color-scheme: dark" in picture.read_text()


def test_no_text_of_the_architecture_is_cut_off() -> None:
    root = ET.fromstring((DRAWN / "architecture.svg").read_text())
    _, _, width, height = (float(part) for part in (root.get("viewBox") or "").split())
    for each in root.iter(f"{SVG}text"):
        # Letters of the widest common fonts are about 0.62 of the font size wide.
        size = 15 if each.get("class") == "title" else 13
        length = len(each.text or "") * size * 0.62
        left = float(each.get("x") or 0) - {"middle": length / 2, "end": length}.get(each.get("text-anchor") or "", 0)
        assert left >= 0, each.text
        assert left + length <= width, each.text
        assert 0 < float(each.get("y") or 0) < height, each.text


def test_the_architecture_image_is_up_to_date_with_its_script() -> None:
    drawn = runpy.run_path(str(DRAWN / "architecture.py"))["picture"]()
    assert (DRAWN / "architecture.svg").read_text() == drawn, "python docs/images/architecture.py"


def test_every_drawn_image_is_used() -> None:
    shown = {(document.parent / target).resolve() for document in markdown_files() for target in links(document)}
    assert set(DRAWN.glob("*.svg")) <= shown
