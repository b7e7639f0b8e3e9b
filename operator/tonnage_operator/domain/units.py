"""Quantities, durations and times in the formats of Kubernetes."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Final

_SCALE: Final = {
    "m": Decimal("0.001"), "": Decimal(1),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9),
    "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(1 << 10), "Mi": Decimal(1 << 20), "Gi": Decimal(1 << 30),
    "Ti": Decimal(1 << 40), "Pi": Decimal(1 << 50), "Ei": Decimal(1 << 60),
}  # fmt: skip

_DURATION: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def parse_quantity(text: str) -> int:
    """Returns a quantity in base units (bytes or CPUs), rounded up to a whole number.

    Raises:
        ValueError: The text is not a quantity, or is negative.
    """
    match = re.fullmatch(r"([0-9.]+)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as 500m, 2 or 16Gi")
    try:
        return math.ceil(Decimal(match[1]) * _SCALE[match[2] or ""])
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is not a quantity such as 500m, 2 or 16Gi") from error


_FOREIGN: Final = re.compile(
    r"([+-]?[0-9]{0,30}(?:\.[0-9]{0,30})?)(?:[eE]([+-]?[0-9]{1,2})|(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei))?"
)
_FOREIGN_SCALE: Final = {**_SCALE, "n": Decimal("1e-9"), "u": Decimal("1e-6")}


def exact_quantity(text: object) -> Decimal:
    """Returns any quantity of Kubernetes in base units, without rounding: also with exponents, as in pods of users.

    Raises:
        ValueError: The text is not a quantity.
    """
    match = _FOREIGN.fullmatch(str(text).strip())
    try:
        if match is None:
            raise InvalidOperation
        return Decimal(match[1]) * (Decimal(10) ** int(match[2]) if match[2] else _FOREIGN_SCALE[match[3] or ""])
    except InvalidOperation as error:
        raise ValueError(f"{str(text)[:40]!r} is not a quantity such as 500m, 2 or 16Gi") from error


def format_quantity(amount: Decimal) -> str:
    """Returns a quantity for an amount in base units; fractions are rounded up to thousandths."""
    return str(int(amount)) if amount == int(amount) else f"{math.ceil(amount * 1000)}m"


def add_quantities(first: object, second: object) -> str:
    """Returns the sum of two quantities."""
    return format_quantity(exact_quantity(first) + exact_quantity(second))


def parse_duration(text: str) -> float:
    """Returns the seconds of a duration such as ``1h30m``.

    Raises:
        ValueError: The text is not a duration.
    """
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"{text!r} is not a duration such as 90s, 10m or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(hours * 3600 + minutes * 60 + seconds)


def scale(amount: str, total: int) -> int:
    """Returns a number, or a percentage of ``total``, as a number, rounded down as in ``maxUnavailable`` elsewhere."""
    return int(amount[:-1]) * total // 100 if amount.endswith("%") else int(amount)


def format_time(moment: datetime) -> str:
    """Returns RFC 3339 in UTC with whole seconds, as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """Parses RFC 3339, with or without fractions of a second."""
    return datetime.fromisoformat(text)


def human_seconds(seconds: float) -> str:
    """Returns text such as ``2m10s`` or ``3h5m``; empty for negative values, which mean unknown."""
    if seconds < 0:
        return ""
    whole = round(seconds)
    hours, minutes, remainder = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}h{minutes}m"
    return f"{minutes}m{remainder}s" if minutes else f"{remainder}s"
