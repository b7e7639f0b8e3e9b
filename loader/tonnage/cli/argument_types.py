"""What people write on the command line: sizes, durations, ranks. Pure, and light enough for a cache hit."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from enum import StrEnum

_Name = TypeVar("_Name", bound="StrEnum")

_SIZE = re.compile(r"(\d{1,30})(?:\.(\d{1,20}))?\s*([kmgtp]?)(i?)(b?)(/s)?", re.IGNORECASE | re.ASCII)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_MAX_SIZE = (1 << 63) - 1

_DURATION_PART = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h|d)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MAX_DURATION = 366 * 86400.0

_RANKS = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)
MAX_RANK = 65_535
"""No model is cut finer, and a typing error should not fill the memory with numbers."""

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"", "0", "false", "no", "off"})


def parse_size(text: str) -> int:
    """Returns the bytes that ``text`` says.

    Plain bytes, decimal units (``400MB``, ``5G``) and binary ones (``16Mi``, ``5GiB``), in upper or lower case, with a
    fraction where wanted (``1.5Gi``, rounded down). A trailing ``/s`` is taken for granted where a rate is meant.

    Raises:
        ArgumentTypeError: It is none of these, or more than 2^63 - 1 bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[4] and not match[3]):
        raise ArgumentTypeError(f"{text!r} is not a size; write for example 16Mi, 5GiB, 400MB or plain bytes")
    whole, fraction, unit, binary, _, _ = match.groups()
    digits = fraction or ""
    factor = (1024 if binary else 1000) ** _POWERS[unit.lower()]
    count: int = int(whole + digits) * factor // 10 ** len(digits)
    if count > _MAX_SIZE:
        raise ArgumentTypeError(f"{text!r} is more bytes than any storage holds")
    return count


def parse_duration(text: str) -> float:
    """Returns the seconds that ``text`` says: a number (``90``, ``2.5``), or parts with units (``10m``, ``1h30m``).

    Raises:
        ArgumentTypeError: It is neither, or longer than a year.
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
    """Returns the ranks that ``text`` lists, in order and once each: ``3``, ``0-3`` (both included), ``0,2,5-7``.

    Raises:
        ArgumentTypeError: It is no such list, a range runs backwards, or a rank is above 65,535.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = _RANKS.fullmatch(part.strip())
        if match is None:
            raise ArgumentTypeError(f"{text!r} is no list of ranks; write for example 0-3 or 0,2,5-7")
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first:
            raise ArgumentTypeError(f"{text!r} has a range of ranks that runs backwards: {part.strip()}")
        if last > MAX_RANK:
            raise ArgumentTypeError(f"{text!r} has a rank above {MAX_RANK}")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def int_range(lowest: int, highest: int) -> Callable[[str], int]:
    """Returns a reader of whole numbers from ``lowest`` to ``highest``, both included."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,18}", text.strip(), re.ASCII) or not lowest <= int(text) <= highest:
            raise ArgumentTypeError(f"{text!r} is not a whole number from {lowest} to {highest}")
        return int(text)

    return read


def enum_choice(names: type[_Name]) -> Callable[[str], _Name]:
    """Returns a reader of the members of ``names``, in upper or lower case."""

    def read(text: str) -> _Name:
        try:
            return names(text.strip().lower())
        except ValueError:
            known = ", ".join(name.value for name in names)
            raise ArgumentTypeError(f"{text!r} is none of {known}") from None

    return read


def parse_bool(text: str) -> bool:
    """Returns what an environment variable says about an option without a value: ``1``, ``true``, ``0``, ``off`` ….

    Raises:
        ArgumentTypeError: It says neither.
    """
    word = text.strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ArgumentTypeError(f"{text!r} is neither true nor false")
