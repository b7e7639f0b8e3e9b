"""The argument parser: errors are raised as ``UsageError``, and options can come from the environment."""

from __future__ import annotations

import argparse
import os
import re
from typing import TYPE_CHECKING, Any, NoReturn

from tonnage.cli import argument_types
from tonnage.errors import InvalidPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ENVIRONMENT_PREFIX = "TONNAGE_"
_HELP_COLUMNS = 100
_MIN_HELP_COLUMNS = 60
_SEPARATORS = re.compile(r"[,\s]+")


class UsageError(InvalidPlan):
    """The arguments are invalid. ``remedy`` names the help of the command."""

    def __init__(self, message: str, *, command: str) -> None:
        super().__init__(message)
        self.remedy = f"See `{command} --help`."


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of exiting.

    Args:
        more_help: Returns what follows the options in the help. It is called for the help only, and may import.
        **settings: Those of argparse.

    Attributes:
        environment_actions: The options that can be set in the environment, by variable.
    """

    def __init__(
        self,
        *,
        more_help: Callable[[], str] | None = None,
        **settings: Any,  # noqa: ANN401  # argparse's own
    ) -> None:
        super().__init__(
            formatter_class=_formatter,
            allow_abbrev=False,
            add_help=False,
            **settings,
        )
        self.environment_actions: dict[str, argparse.Action] = {}
        self._more_help = more_help

    def format_help(self) -> str:
        """Returns the help, with what follows the options."""
        if self._more_help is not None:
            self.epilog = self._more_help()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Raises argparse's message instead of exiting.

        Raises:
            UsageError: Always.
        """
        sentence = message[:1].upper() + message[1:]
        raise UsageError(sentence if sentence.endswith(".") else f"{sentence}.", command=self.prog)

    def reject_unknown(self, unknown: Sequence[str]) -> NoReturn:
        """Raises for unknown arguments, and suggests the option with the closest name.

        Raises:
            UsageError: Always.
        """
        import difflib

        word = unknown[0].partition("=")[0]
        known = [name for action in self._actions for name in action.option_strings]
        suggestions = difflib.get_close_matches(word, known, n=1) if word.startswith("-") else []
        hint = f" Did you mean {suggestions[0]}?" if suggestions else ""
        what = "option" if word.startswith("-") else "argument"
        raise UsageError(f"Unknown {what} {word!r}.{hint}", command=self.prog)

    def add_option(
        self,
        group: argparse._ActionsContainer,
        name: str,
        *,
        allow_envvar: bool = True,
        **settings: Any,  # noqa: ANN401
    ) -> None:
        """Adds the option ``name`` to a group, and its environment variable unless ``allow_envvar`` is False."""
        action = group.add_argument(name, **settings)
        if allow_envvar:
            self.environment_actions[ENVIRONMENT_PREFIX + action.dest.upper()] = action

    def apply_environment(self, environment: Mapping[str, str], namespace: argparse.Namespace) -> None:
        """Sets options that the command line doesn't have from the environment.

        Raises:
            UsageError: A variable has an invalid value.
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
    """Returns whether an option was given; 0 is a value."""
    return value is not None and value is not False


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Help texts are written for 100 columns. argparse would import shutil, which is slow, to find the width."""
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
    if isinstance(action, argparse._AppendAction):  # noqa: SLF001  # argparse has no public equivalent
        return [convert(part) for part in _SEPARATORS.split(text.strip())]
    return convert(text)
