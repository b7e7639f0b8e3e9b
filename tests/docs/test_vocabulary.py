"""The words of the field, everywhere: code, messages, docs and tests do without private synonyms and idiom.

The glossary lists the words that are used instead. Identifiers are split, so that ``wake_loop`` and ``tellStatus`` are
found too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from support.markdown import tracked_files
from support.repository import ROOT

if TYPE_CHECKING:
    from pathlib import Path

BANNED = {
    "people where programs act": (
        "anybody", "nobody", "somebody", "someone", "whoever", "whom", "everybody",
    ),
    "speech where programs act": (
        "say", "says", "said", "saying", "tell", "tells", "telling", "told", "talk", "talks", "speaks",
    ),
    "translated idiom": (
        "anew", "dear", "farewell", "mend", "mended", "mends",
    ),
    "metaphors": (
        "bookkeeping", "cable", "courtesy", "crowd", "essence", "gist", "guest", "guests", "hurry", "lane", "lanes",
        "neighbour", "neighbours", "pace", "patience", "sacrificed", "storyteller", "tally", "wake", "wakes", "waking",
        "wish", "wishes",
    ),
}  # fmt: skip
"""Words by the reason why they are not used."""
ALLOWED = (
    r"\.tell\(\)",  # the position in a file, in Python's own words
    r"[Ee]ssence\b",  # kopf's word for the fields that it compares
    r"nobody:nogroup|\bNOBODY\b|user nobody|\"nobody\"|`nobody`",  # the user of that name
)
SKIPPED = (
    "docs/performance/", "docs/images/", "LICENSE", "requirements/", "tests/docs/test_vocabulary.py", "go.sum",
    "go.mod", "docs/reference/glossary.md",
)  # fmt: skip
"""Data, what others wrote, and where the words themselves are listed."""
SUFFIXES = {"", ".md", ".py", ".sh", ".tpl", ".toml", ".txt", ".yaml", ".yml"}

WORDS = {word: reason for reason, words in BANNED.items() for word in words}
PATTERN = re.compile(rf"(?<![A-Za-z])(?:{'|'.join(WORDS)})(?![A-Za-z])", re.IGNORECASE)
HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def findings(file: Path) -> list[str]:
    """Returns each banned word of a file with its line."""
    found = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        text = HUMP.sub("_", re.sub("|".join(ALLOWED), "", line))
        found += [f"{file.relative_to(ROOT)}:{number}: {match[0]}" for match in PATTERN.finditer(text)]
    return found


def checked_files() -> list[Path]:
    """Returns the files that people read."""
    names = [(file, str(file.relative_to(ROOT))) for file in tracked_files()]
    return [file for file, name in names if file.suffix in SUFFIXES and not any(each in name for each in SKIPPED)]


def test_no_banned_word_is_used() -> None:
    found = [each for file in checked_files() for each in findings(file)]
    assert not found, f"{len(found)} words that the glossary replaces:\n" + "\n".join(found)


@pytest.mark.parametrize("line", ["Nobody waits.", "def tell_status():", "class WakeLoop:", "# it said no"])
def test_a_banned_word_is_found_in_text_and_in_identifiers(tmp_path: Path, line: str) -> None:
    file = tmp_path / "file.py"
    file.write_text(line)
    relative = file.read_text()
    assert PATTERN.search(HUMP.sub("_", relative))
