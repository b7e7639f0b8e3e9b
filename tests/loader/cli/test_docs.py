"""docs/reference/cli.md matches the command line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tonnage.cli import help_texts
from tonnage.cli.command_line import build_parser, parse_command_line
from tonnage.contract import Report, decode_report

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "cli.md"
COMMANDS = build_parser()[1]


def section(name: str) -> str:
    """Returns the page's section about a command."""
    found = re.search(rf"^## tonnage {name}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"docs/reference/cli.md has no section on {name}"
    return found[1]


def option_row(action: object) -> str:
    """Returns an option's row of the table."""
    names = ", ".join(action.option_strings) + (f" {action.metavar}" if action.metavar else "")  # type: ignore[attr-defined]
    meaning = " ".join(action.help.split()).replace("|", "\\|").replace("*", "\\*")  # type: ignore[attr-defined]
    return f"| `{names}` | {meaning} |"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_is_on_the_page_with_its_help_text(name: str) -> None:
    text = section(name)
    for action in COMMANDS[name]._actions:
        if action.option_strings and action.dest != "help":
            assert option_row(action) in text


def shown_commands(text: str) -> list[list[str]]:
    """Returns the arguments of each call of tonnage in a text with shell examples."""
    joined = text.replace("\\\n", " ")
    calls = re.findall(r"(?:^|[$(] ?)\s*(tonnage (?!COMMAND)[^|`\n]*)", joined, re.MULTILINE)
    return [shlex.split(call.rstrip().removesuffix(")").rstrip(), comments=True)[1:] for call in calls]


def page_commands() -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [args for line in lines for args in shown_commands(line)]


def help_commands() -> list[list[str]]:
    texts = [help_texts.PROGRAM_DESCRIPTION, *(command.description for command in help_texts.COMMANDS.values())]
    lines = [line for text in texts for line in text.replace("\\\n", " ").splitlines()]
    examples = [line for line in lines if re.match(r"\s+(tonnage |\w+=\$\(tonnage )", line)]
    return [args for line in examples for args in shown_commands(line)]


@pytest.mark.parametrize("words", page_commands(), ids=" ".join)
def test_every_command_on_the_page_is_valid(words: list[str]) -> None:
    assert parse_command_line(words, {}).command == words[0]


@pytest.mark.parametrize("words", help_commands(), ids=" ".join)
def test_every_example_of_the_help_is_valid(words: list[str]) -> None:
    assert parse_command_line(words, {}).command == words[0]


def test_page_and_help_have_examples_of_every_command() -> None:
    assert {args[0] for args in page_commands()} == set(COMMANDS)
    assert {words[0] for words in help_commands()} == set(COMMANDS)


def test_the_report_on_the_page_is_valid() -> None:
    (line,) = re.findall(r'^\{"schema_version".*', section("load"), re.MULTILINE)
    report = decode_report(line)
    assert report.outcome == "loaded"
    assert f'"{report.revision}"' in line


def test_the_page_explains_the_fields_of_a_load() -> None:
    described = re.search(r"### The report\n(.*?)### ", section("load"), re.DOTALL)
    assert described
    later = {
        "schema_version", "kind", "progress", "resolved", "entries", "identity", "node", "pod",
    }  # fmt: skip
    for name in set(Report.__struct_fields__) - later:
        assert f"`{name}`" in described[1], name
