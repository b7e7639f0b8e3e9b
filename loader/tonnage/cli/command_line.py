"""The command line: which commands there are, with their options and help.

Parsing returns a plain namespace. Options that were not given are None (or False). An option that the command line
doesn't set may be set in the environment as ``TONNAGE_<OPTION>``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.cli import help_texts, options
from tonnage.cli.parser import Parser, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence


def parse_command_line(argv: Sequence[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """Reads a command line.

    Args:
        argv: Without the program's name.
        environment: May have ``TONNAGE_<OPTION>``.

    Returns:
        The namespace; ``command`` is the command's name, ``from_environment`` lists the options that the environment
        set.

    Raises:
        UsageError: It is invalid.
        SystemExit: Help or the version was requested and printed.
    """
    command_name = next((word for word in argv if not word.startswith("-")), "")
    parser, commands = build_parser(command_name)
    namespace, unknown = parser.parse_known_args(argv)
    namespace.from_environment = []
    if namespace.command is None:
        raise UsageError("No command given. Commands: " + ", ".join(help_texts.COMMANDS) + ".", command=parser.prog)
    if unknown:
        commands[namespace.command].reject_unknown(unknown)
    commands[namespace.command].apply_environment(environment, namespace)
    return namespace


def build_parser(only: str = "") -> tuple[Parser, dict[str, Parser]]:
    """Returns the program's parser, and the commands' parsers by name.

    Args:
        only: The only command that gets its options: a cache hit doesn't wait for the others. If empty or unknown, all
            commands get theirs.
    """
    parser = Parser(prog="tonnage", description=help_texts.PROGRAM_DESCRIPTION, epilog=help_texts.PROGRAM_EPILOG)
    parser.add_argument("-h", "--help", action="help", help="show this help and exit")
    parser.add_argument("--version", action="version", version=_version(), help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=Parser)
    commands: dict[str, Parser] = {}
    for name, text in help_texts.COMMANDS.items():
        command = subparsers.add_parser(
            name,
            help=text.summary,
            description=text.description,
            more_help=text.more_help,
            usage=text.usage,
        )
        if name == only or only not in help_texts.COMMANDS:
            options.OPTION_ADDERS[name](command)
        commands[name] = command
    return parser, commands


def _version() -> str:
    from tonnage._version import __version__

    return f"tonnage {__version__}"
