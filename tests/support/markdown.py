"""Parses the Markdown that tests of the documentation need: code blocks, tables, links and headings."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support.repository import ROOT

if TYPE_CHECKING:
    from pathlib import Path

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>```+)(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^ *(?P=ticks) *$", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"(?<!\\)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+(?:\([^()\s]*\))?)(?:\s+\"[^\"]*\")?\)")
_HEADING = re.compile(r"^(#{1,6}) +(.*?) *#*$", re.MULTILINE)


@dataclass(frozen=True)
class CodeBlock:
    """A fenced code block."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def tracked_files() -> list[Path]:
    """Returns the files that git tracks, and new ones that it doesn't ignore."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sorted(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())


def markdown_files() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".md"]


def code_blocks(document: Path) -> list[CodeBlock]:
    """Returns the fenced code blocks of a document, without the indentation of lists."""
    text = document.read_text()
    found = []
    for match in _FENCE.finditer(text):
        width = len(match["indent"])
        body = "".join(line[min(width, len(line) - len(line.lstrip(" "))) :] for line in match["text"].splitlines(True))
        found.append(CodeBlock(document, text.count("\n", 0, match.start()) + 1, match["language"], body))
    return found


def prose(document: Path) -> str:
    """Returns the text without fenced code blocks."""
    return _FENCE.sub("", document.read_text())


def links(document: Path) -> list[str]:
    """Returns the targets of links and images as written, those in inline code left out."""
    return _LINK.findall(re.sub(r"`[^`\n]*`", "`code`", prose(document)))


def anchors(document: Path) -> set[str]:
    """Returns the anchors that GitHub generates for a document's headings."""
    seen: dict[str, int] = {}
    found = set()
    for _, title in _HEADING.findall(prose(document)):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").replace("*", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found


def section(document: Path, title: str) -> str:
    """Returns the text below a heading, up to the next heading of the same or a higher level.

    Raises:
        KeyError: The document has no such heading.
    """
    text = document.read_text()
    for match in _HEADING.finditer(text):
        if match[2] == title:
            end = re.compile(rf"^#{{1,{len(match[1])}}} ", re.MULTILINE).search(text, match.end())
            return text[match.end() : end.start() if end else None]
    raise KeyError(f"{document.name} has no section {title!r}")


def table_rows(text: str) -> list[list[str]]:
    """Returns the cells of all tables in a text, header rows left out."""
    rows: list[list[str]] = []
    previous = ""
    for line in text.splitlines():
        if re.fullmatch(r"\|[-:| ]+\|", line):
            rows = rows[:-1] if previous.startswith("|") else rows
        elif line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        previous = line
    return rows


def inline_code(cell: str) -> str:
    """Returns the first inline code in a cell; empty if there is none."""
    match = re.search(r"`([^`]+)`", cell)
    return match[1] if match else ""
