"""Commands in the documentation are valid: their programs, subcommands, options, targets and files exist."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.markdown import code_blocks, markdown_files, prose
from support.repository import ROOT
from tonnage.cli.command_line import parse_command_line
from tonnage_operator import cli as operator_cli
from tonnage_operator.kubectl import arguments as plugin_arguments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.markdown import CodeBlock

PROGRAMS = {
    ".", "aws", "cat", "cd", "curl", "docker", "export", "git", "hack/images/build.py", "helm", "jq", "kubectl", "ls",
    "make", "mount", "pip", "python", "python3", "tail", "tonnage", "tonnage-operator", "umount", "vllm",
}  # fmt: skip
"""Programs that commands may use. Add a new program deliberately."""

WORDS_OF_SHELLS = {
    "{",
    "}",
    "[",
    "do",
    "done",
    "echo",
    "else",
    "exit",
    "fi",
    "for",
    "if",
    "read",
    "set",
    "then",
    "while",
}
SHELLS = {"sh", "shell", "bash"}
TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def lines(block: CodeBlock) -> list[str]:
    """Returns the command lines of a block, continued lines joined, output of programs left out."""
    text = block.text.replace("\\\n", " ")
    if block.language == "console":
        return [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    if block.language in SHELLS:
        return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if block.language == "":
        return [line for line in text.splitlines() if line.split(" ")[0] in PROGRAMS - {"tonnage", "docker"}]
    return []


def calls(line: str) -> Iterator[list[str]]:
    """Splits a command line into commands at pipes, lists, and unquoted substitutions."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    skip = False
    for token in lexer:
        if set(token) <= set("();|&"):
            if words:
                yield words
            words = []
        elif set(token) <= set("<>"):
            skip = True
        elif skip:
            skip = False
        elif words or not re.fullmatch(r"\w+=.*|\$", token):
            words.append(token)
    if words:
        yield words


COMMANDS = [
    (f"{block} {' '.join(words)}"[:100], words)
    for document in markdown_files()
    for block in code_blocks(document)
    for line in lines(block)
    for words in calls(line)
]


@pytest.mark.parametrize("words", [pytest.param(words, id=name) for name, words in COMMANDS])
def test_a_command_is_valid(words: list[str]) -> None:
    check(words)


def test_commands_of_the_main_programs_are_found() -> None:
    seen = {words[0] for _, words in COMMANDS}
    assert {"make", "tonnage", "tonnage-operator", "kubectl", "helm"} <= seen


def check(words: list[str]) -> None:
    """Checks a command, if there is a check for its program."""
    program, *arguments = words
    program = program.removeprefix(".venv/bin/")
    assert program in PROGRAMS | WORDS_OF_SHELLS, f"{program} is not in PROGRAMS"
    if program in CHECKS:
        CHECKS[program](arguments)


def check_make(arguments: list[str]) -> None:
    """Checks that targets are in the Makefile."""
    targets = {word for word in arguments if not word.startswith("-") and "=" not in word}
    assert targets <= TARGETS, targets - TARGETS


def check_tonnage(arguments: list[str]) -> None:
    """Checks arguments with the loader's parser."""
    if "--help" in arguments:
        arguments = [word for word in arguments if word not in {"--help", "COMMAND"}] or ["version"]
        arguments = arguments if len(arguments) > 1 or arguments == ["version"] else [*arguments, "s3://bucket/"]
    parse_command_line(arguments, {})


def check_operator(arguments: list[str]) -> None:
    """Checks arguments with the operator's parser."""
    if "--help" in arguments:
        with pytest.raises(SystemExit, match=r"^0$"):
            operator_cli._parser().parse_args(arguments)
    else:
        operator_cli._parser().parse_args(arguments)


def check_python(arguments: list[str]) -> None:
    """Checks that our scripts and modules exist."""
    if arguments[:1] == ["-m"]:
        assert importlib.util.find_spec(arguments[1]), arguments[1]
    elif arguments and arguments[0].endswith(".py"):
        assert (ROOT / arguments[0]).exists(), arguments[0]


def check_kubectl(arguments: list[str]) -> None:
    """Checks verb and options, and the command after two dashes."""
    if "--" in arguments:
        position = arguments.index("--")
        check(arguments[position + 1 :])
        arguments = arguments[:position]
    if arguments[:1] == ["tonnage"]:  # the plugin
        plugin_arguments.build_parser().parse_args(arguments[1:])
        return
    check_options("kubectl", arguments, groups={"rollout", "config", "auth", "create", "set"})


def check_helm(arguments: list[str]) -> None:
    """Checks subcommand and options, and that values that are set exist in the chart."""
    check_options("helm", arguments, groups={"get", "repo", "show"})
    for option, value in itertools.pairwise(arguments):
        if option in {"--set", "--set-string"}:
            for each in re.split(r"(?<!\\),", value):
                assert value_exists(each.partition("=")[0]), each
    for word in arguments:
        if word.startswith("charts/"):
            assert (ROOT / word / "Chart.yaml").exists(), word


CHECKS = {
    "helm": check_helm,
    "kubectl": check_kubectl,
    "make": check_make,
    "python": check_python,
    "python3": check_python,
    "tonnage": check_tonnage,
    "tonnage-operator": check_operator,
}


@functools.cache
def chart_values() -> dict[str, object]:
    import yaml

    return dict(yaml.safe_load((ROOT / "charts" / "tonnage" / "values.yaml").read_text()))


def value_exists(name: str) -> bool:
    """Returns whether a dotted name is a value of the chart. Below an empty mapping every name is."""
    here: object = chart_values()
    for part in name.split("."):
        if here == {}:
            return True
        if not isinstance(here, dict) or part not in here:
            return False
        here = here[part]
    return True


def find_program(name: str) -> Path | None:
    """Returns the path of a program; None if it is neither built nor installed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tonnage" / "kubernetes"
    places = [Path(os.environ.get("KUBEBUILDER_ASSETS") or "/nonexistent") / name, *sorted(cache.glob(f"*/{name}"))]
    found = next((place for place in places if place.exists()), None) or shutil.which(name)
    return Path(found) if found else None


@functools.cache
def help_of(program: str, *command: str) -> str:
    """Returns a program's help for a command; skips the test if the program is not available."""
    path = find_program(program)
    if path is None:
        pytest.skip(f"{program} is neither built nor installed")
    wanted = command if command[-1:] == ("options",) else (*command, "--help")
    done = subprocess.run([path, *wanted], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{program} {' '.join(command)}: {done.stderr}"
    return done.stdout


@functools.cache
def options_of(program: str, *command: str) -> frozenset[str]:
    """Returns the options of a command."""
    text = help_of(program, *command)
    if program == "kubectl":
        text += help_of("kubectl", "options")
    pairs = re.findall(r"^\s+(?:(-\w), )?(--[\w-]+)", text, re.MULTILINE)
    return frozenset(name for pair in pairs for name in pair if name)


def check_options(program: str, arguments: list[str], *, groups: set[str]) -> None:
    """Checks subcommand and options against the program's help."""
    command = arguments[: 2 if arguments[0] in groups else 1]
    assert re.search(rf"^  {re.escape(command[0])}\s", help_of(program), re.MULTILINE), f"{program} {command[0]}"
    known = options_of(program, *command)
    for word in arguments:
        option = word.partition("=")[0]
        several = {f"-{letter}" for letter in option[1:]} if re.fullmatch(r"-\w+", option) else {option}
        if option.startswith("-") and option != "-":
            assert several <= known, f"{program} {' '.join(command)} has no {option}"


@pytest.mark.parametrize("document", markdown_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_in_prose_exist(document: Path) -> None:
    for words in re.findall(r"`make ([^`]+)`", prose(document)):
        check_make(shlex.split(words))


def test_command_lines_are_split() -> None:
    assert list(calls("a=$(tonnage ls --json | jq -r .x) # why")) == [["tonnage", "ls", "--json"], ["jq", "-r", ".x"]]
    assert list(calls('ls "$path" > file')) == [["ls", "$path"]]
    assert list(calls("X=1 make test && ls")) == [["make", "test"], ["ls"]]
