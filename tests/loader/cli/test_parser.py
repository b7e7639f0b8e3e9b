"""The command line: options, environment variables, help and errors."""

from __future__ import annotations

import pytest

from tonnage.cli import help_texts
from tonnage.cli.command_line import build_parser, parse_command_line
from tonnage.cli.parser import Parser, UsageError
from tonnage.contract import AddressingStyle, Layout, Verify

ISSUE_OPTIONS = {
    "--cache", "--layout", "--include", "--exclude", "--ranks", "--verify", "--endpoint-url", "--region",
    "--addressing-style", "--ca-bundle", "--anonymous", "--workers", "--connections", "--part-size", "--segment-size",
    "--bandwidth-limit", "--timeout", "--hold", "--plan", "--report", "--progress",
    "--termination-log", "--ready-file", "--status-file", "--on-failure",
}  # fmt: skip

COMMANDS = build_parser()[1]


def options_of(command: Parser) -> set[str]:
    return {name for action in command._actions for name in action.option_strings}


def test_load_has_every_promised_option() -> None:
    assert options_of(COMMANDS["load"]) >= ISSUE_OPTIONS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_has_a_help_text(name: str) -> None:
    for action in COMMANDS[name]._actions:
        assert action.help, action.option_strings


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_has_examples_and_every_option_in_a_group_with_a_title(name: str) -> None:
    text = COMMANDS[name].format_help()
    assert "example" in text
    assert f"tonnage {name}" in text
    for option in options_of(COMMANDS[name]):
        assert option in text
    assert "positional arguments" not in text
    assert "%(" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_help_of_load_explains_output_environment_and_exit_codes() -> None:
    text = COMMANDS["load"].format_help()
    for word in (
        "AWS_SESSION_TOKEN",
        "TONNAGE_<OPTION>",
        "exit codes",
        "10 AccessDenied",
        "70 InternalError",
        "outcome",
    ):
        assert word in text


def test_help_of_the_program_lists_the_commands() -> None:
    text = build_parser()[0].format_help()
    for name, command in help_texts.COMMANDS.items():
        assert f"    {name}" in text
        assert command.summary in text


def test_the_environment_sets_options_that_are_not_given() -> None:
    environment = {
        "TONNAGE_CACHE": "/c",
        "TONNAGE_VERIFY": "SHA256",
        "TONNAGE_PART_SIZE": "32Mi",
        "TONNAGE_ANONYMOUS": "true",
        "TONNAGE_EXCLUDE": "*.bin, *.md",
        "TONNAGE_LAYOUT": "",
    }
    found = parse_command_line(["load", "s3://b/k", "--part-size", "0"], environment)
    assert found.cache == "/c"
    assert found.verify is Verify.SHA256
    assert found.anonymous is True
    assert found.exclude == ["*.bin", "*.md"]
    assert found.layout is None
    assert found.part_size == 0, "0 on the command line is a value"
    assert sorted(found.from_environment) == ["anonymous", "cache", "exclude", "verify"]


def test_an_invalid_variable_is_named() -> None:
    with pytest.raises(UsageError, match="TONNAGE_TIMEOUT: 'soon' is not a duration"):
        parse_command_line(["load", "s3://b/k"], {"TONNAGE_TIMEOUT": "soon"})


def test_no_variable_removes_all_entries() -> None:
    assert parse_command_line(["rm", "x"], {"TONNAGE_ALL": "1"}).all is False


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_variable_is_named_after_its_option(name: str) -> None:
    for variable, action in COMMANDS[name].environment_actions.items():
        assert variable == "TONNAGE_" + action.option_strings[0].removeprefix("--").replace("-", "_").upper()


def test_values_are_parsed() -> None:
    args = "load s3://b/a s3://b/c --layout tensorizer --ranks 0-2 --addressing-style path --timeout 10m --include x"
    found = parse_command_line([*args.split(), "--include", "y", "--bandwidth-limit", "5GiB", "--hold"], {})
    assert found.sources == ["s3://b/a", "s3://b/c"]
    assert found.layout is Layout.TENSORIZER
    assert found.ranks == (0, 1, 2)
    assert found.addressing_style is AddressingStyle.PATH
    assert found.timeout == 600.0
    assert found.include == ["x", "y"]
    assert found.bandwidth_limit == 5 << 30
    assert found.hold is True


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "No command given"),
        ("lod s3://b/k", "invalid choice: 'lod'"),
        ("load s3://b/k --cash /x", "Unknown option '--cash'. Did you mean --cache"),
        ("load s3://b/k --part-size many", "'many' is not a size"),
        ("load s3://b/k --workers 1000", "from 0 to 256"),
        ("load s3://b/k --layout zip", "not one of safetensors, tensorizer"),
        ("load s3://b/k --cache", "expected one argument"),
        ("load s3://b/k --progress loud", "not one of auto, bar, json, off"),
        ("inspect", "required: SOURCE"),
        ("inspect x --tensors few", "'few' is not a whole number"),
        ("verify", "required: ENTRY"),
        ("ls extra", "Unknown argument 'extra'"),
    ],
)
def test_an_invalid_command_line_is_rejected_with_a_message(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_command_line(line.split(), {})
    assert caught.value.exit_code == 2
    assert caught.value.message.endswith((".", "?"))
    assert "--help`" in caught.value.remedy


def test_options_are_never_abbreviated() -> None:
    with pytest.raises(UsageError):
        parse_command_line(["load", "s3://b/k", "--anon"], {})
