"""Parsers of option values: sizes, durations, ranks. Pure, and light enough for a cache hit."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, TypeVar

from tonnage.contract import ranks, sizes

if TYPE_CHECKING:
    from collections.abc import Callable
    from enum import StrEnum

_Name = TypeVar("_Name", bound="StrEnum")

_DURATION_PART = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h|d)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MAX_DURATION = 366 * 86400.0

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"", "0", "false", "no", "off"})


def parse_size(text: str) -> int:
    """See ``sizes.parse_size``.

    Raises:
        ArgumentTypeError: The text is not a size.
    """
    try:
        return sizes.parse_size(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def medium(text: str) -> tuple[str, str]:
    """Returns the name of a medium and its folder, from ``memory=/media/memory``.

    Raises:
        ArgumentTypeError: The text is not both.
    """
    name, _, folder = text.partition("=")
    if name not in {"memory", "disk"} or not folder.startswith("/"):
        raise ArgumentTypeError(f"{text!r} is not memory= or disk= with the absolute path of a folder")
    return name, folder


def parse_duration(text: str) -> float:
    """Returns a duration in seconds, from a number (``90``, ``2.5``) or parts with units (``10m``, ``1h30m``).

    Raises:
        ArgumentTypeError: It is neither, or longer than 366 days.
    """
    stripped = text.strip().lower()
    if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", stripped, re.ASCII):
        stripped += "s"
    parts = _DURATION_PART.findall(stripped)
    if not parts or "".join(number + unit for number, unit in parts) != stripped:
        raise ArgumentTypeError(f"{text!r} is not a duration; write seconds, or for example 500ms, 10m, 1h30m")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds > _MAX_DURATION:
        raise ArgumentTypeError(f"{text!r} is longer than a year")
    return seconds


def parse_ranks(text: str) -> tuple[int, ...]:
    """See ``ranks.parse_ranks``.

    Raises:
        ArgumentTypeError: The text is not a list of ranks.
    """
    try:
        return ranks.parse_ranks(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def int_range(lowest: int, highest: int) -> Callable[[str], int]:
    """Returns a parser of integers from ``lowest`` to ``highest``, both included."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,18}", text.strip(), re.ASCII) or not lowest <= int(text) <= highest:
            raise ArgumentTypeError(f"{text!r} is not a whole number from {lowest} to {highest}")
        return int(text)

    return read


def enum_choice(names: type[_Name]) -> Callable[[str], _Name]:
    """Returns a parser of the members of ``names``, in upper or lower case."""
    parse_value = choice(*(name.value for name in names))
    return lambda text: names(parse_value(text))


def choice(*values: str) -> Callable[[str], str]:
    """Returns a parser of one of ``values``, all lower case, in upper or lower case."""

    def read(text: str) -> str:
        value = text.strip().lower()
        if value not in values:
            raise ArgumentTypeError(f"{text!r} is not one of {', '.join(values)}")
        return value

    return read


def parse_bool(text: str) -> bool:
    """Returns the value of a flag's environment variable: 1, true, yes, on; or 0, false, no, off, or empty.

    Raises:
        ArgumentTypeError: It is none of these.
    """
    word = text.strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ArgumentTypeError(f"{text!r} is neither true nor false")
