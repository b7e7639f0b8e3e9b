"""Generates the table of the chart's values in ``docs/guides/helm.md`` from the comments of ``values.yaml``.

A comment that begins with ``# --`` describes the key below it; nested keys without a comment are part of its default.
Run ``python hack/chart/values_table.py`` after a change of ``values.yaml``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
VALUES = ROOT / "charts" / "tonnage" / "values.yaml"
PAGE = ROOT / "docs" / "guides" / "helm.md"
BEGIN = "<!-- values: made by hack/chart/values_table.py -->"
END = "<!-- end of values -->"


@dataclass(frozen=True)
class Value:
    """One documented value: its path with dots, its default, and its description."""

    path: str
    default: Any
    text: str


class MissingDescription(Exception):
    """A value has no description; the message has its path."""


def values(source: str) -> list[Value]:
    """Returns all documented values, in their order.

    Args:
        source: The text of ``values.yaml``.

    Raises:
        MissingDescription: A value has no comment, and none of its parents has one.
    """
    lines = source.splitlines()
    root = yaml.compose(source, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise MissingDescription("values.yaml is not a mapping")
    return list(_walk(root, yaml.safe_load(source), lines, ""))


def _walk(node: yaml.MappingNode, data: dict[str, Any], lines: list[str], above: str) -> Iterator[Value]:
    for key, child in node.value:
        path = f"{above}{key.value}"
        text = _comment(lines, key.start_mark.line)
        if text:
            yield Value(path, data[key.value], text)
        elif isinstance(child, yaml.MappingNode) and child.value:
            yield from _walk(child, data[key.value], lines, f"{path}.")
        else:
            raise MissingDescription(f"{path} has no comment that begins with `# --`")


def _comment(lines: list[str], line: int) -> str:
    """Returns the description directly above a line; empty if there is none."""
    found: list[str] = []
    for above in reversed(lines[:line]):
        words = above.strip()
        if not words.startswith("#"):
            return ""
        found.insert(0, words.removeprefix("# -- ").removeprefix("# "))
        if words.startswith("# -- "):
            return " ".join(found)
    return ""


def table(found: list[Value]) -> str:
    """Returns the values as a Markdown table."""
    rows = ["| value | default | meaning |", "|---|---|---|"]
    for each in found:
        default = json.dumps(each.default, ensure_ascii=False)
        cells = (f"`{each.path}`", f"`{default}`", each.text)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def page(text: str) -> str:
    """Returns the page with a new table."""
    before, _, remainder = text.partition(BEGIN)
    _, _, after = remainder.partition(END)
    return f"{before}{BEGIN}\n\n{table(values(VALUES.read_text()))}\n\n{END}{after}"


def main() -> int:
    PAGE.write_text(page(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
