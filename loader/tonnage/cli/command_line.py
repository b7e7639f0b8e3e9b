"""The command line: which commands and options there are, and their help.

Parsing ends in a plain namespace in which an option that was not given is absent from ``given`` and has None (or
False). Options may come from the environment as ``TONNAGE_<OPTION>``, unless the command line has them.
"""

from __future__ import annotations

import argparse
import os
import re
from typing import TYPE_CHECKING, Any, NoReturn

from tonnage.cli import argument_types, help_texts, options
from tonnage.errors import InvalidPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ENVIRONMENT_PREFIX = "TONNAGE_"
_HELP_COLUMNS = 100
_MIN_HELP_COLUMNS = 60
_SEPARATORS = re.compile(r"[,\s]+")


class UsageError(InvalidPlan):
    """The arguments can't be understood. ``remedy`` names the help that belongs to them."""

    def __init__(self, message: str, *, command: str) -> None:
        super().__init__(message)
        self.remedy = f"See `{command} --help`."  # type: ignore[misc]  # more telling than the class's own


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of leaving, and knows which of its options have a variable."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401  # argparse's own
        super().__init__(
            formatter_class=_formatter,
            allow_abbrev=False,
            add_help=False,
            **settings,
        )
        self.environment_actions: dict[str, argparse.Action] = {}

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would leave with.

        Raises:
            UsageError: Always.
        """
        sentence = message[:1].upper() + message[1:]
        raise UsageError(sentence if sentence.endswith(".") else f"{sentence}.", command=self.prog)

    def reject_unknown(self, unknown: Sequence[str]) -> NoReturn:
        """Raises because of words that mean nothing here, naming an option that may have been meant.

        Raises:
            UsageError: Always.
        """
        import difflib

        word = unknown[0].partition("=")[0]
        known = [name for action in self._actions for name in action.option_strings]
        suggestions = difflib.get_close_matches(word, known, n=1) if word.startswith("-") else []
        hint = f" Did you mean {suggestions[0]}?" if suggestions else ""
        what = "option" if word.startswith("-") else "argument"
        raise UsageError(f"There is no {what} {word!r} here.{hint}", command=self.prog)

    def add_option(
        self,
        group: argparse._ActionsContainer,
        name: str,
        *,
        allow_envvar: bool = True,
        **settings: Any,  # noqa: ANN401
    ) -> None:
        """Adds the option ``name`` to a group, and (unless ``allow_envvar`` is False) its variable."""
        action = group.add_argument(name, **settings)
        if allow_envvar:
            self.environment_actions[ENVIRONMENT_PREFIX + action.dest.upper()] = action

    def apply_environment(self, environment: Mapping[str, str], namespace: argparse.Namespace) -> None:
        """Takes options that the command line left out from the environment.

        Raises:
            UsageError: A variable's value can't be understood.
        """
        for variable, action in self.environment_actions.items():
            text = environment.get(variable, "")
            if not text or is_set(getattr(namespace, action.dest)):
                continue
            try:
                value = _convert(action, text)
            except argparse.ArgumentTypeError as error:
                raise UsageError(f"{variable}: {error}.", command=self.prog) from error
            setattr(namespace, action.dest, value)
            namespace.from_environment.append(action.dest)


def is_set(value: object) -> bool:
    """Says whether an option's value was stated; 0 is a value."""
    return value is not None and value is not False


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Texts of help are written for 100 columns; argparse's own way to find the width costs a slow import."""
    try:
        columns = os.get_terminal_size(1).columns - 2
    except OSError:
        columns = _HELP_COLUMNS
    width = max(_MIN_HELP_COLUMNS, min(columns, _HELP_COLUMNS))
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=width)


def _convert(action: argparse.Action, text: str) -> object:
    if action.nargs == 0:
        return argument_types.parse_bool(text)
    convert: Callable[[str], object] = action.type if callable(action.type) else str
    if isinstance(action, argparse._AppendAction):  # noqa: SLF001  # argparse has no public way to ask
        return [convert(part) for part in _SEPARATORS.split(text.strip())]
    return convert(text)


def parse_command_line(argv: Sequence[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """Reads a command line.

    Args:
        argv: Without the program's name.
        environment: Where ``TONNAGE_<OPTION>`` may be.

    Returns:
        The namespace; ``command`` is the command's name, ``from_environment`` the options that came from there.

    Raises:
        UsageError: It can't be understood.
        SystemExit: Help or version was asked for, and printed.
    """
    command_name = next((word for word in argv if not word.startswith("-")), "")
    parser, commands = build_parser(command_name)
    namespace, unknown = parser.parse_known_args(argv)
    namespace.from_environment = []
    if namespace.command is None:
        raise UsageError("Which command? One of " + ", ".join(help_texts.COMMANDS) + ".", command=parser.prog)
    if unknown:
        commands[namespace.command].reject_unknown(unknown)
    commands[namespace.command].apply_environment(environment, namespace)
    return namespace


def build_parser(only: str = "") -> tuple[Parser, dict[str, Parser]]:
    """Returns the parser, and those of the commands by name.

    Args:
        only: A command's name: the others get no options, which nobody will see and a cache hit needn't wait for.
    """
    parser = Parser(prog="tonnage", description=help_texts.PROGRAM_DESCRIPTION, epilog=help_texts.PROGRAM_EPILOG)
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument("--version", action="version", version=_version(), help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=Parser)
    commands: dict[str, Parser] = {}
    for name, text in help_texts.COMMANDS.items():
        command = subparsers.add_parser(
            name,
            help=text.summary,
            description=text.description,
            epilog=text.epilog() if name == only or not only else None,
            usage=text.usage,
        )
        if name == only or only not in help_texts.COMMANDS:
            options.OPTION_ADDERS[name](command)
        commands[name] = command
    return parser, commands


def _version() -> str:
    from tonnage._version import __version__

    return f"tonnage {__version__}"
