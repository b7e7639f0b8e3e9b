"""Sizes in bytes as text, for people to read and to write."""

from __future__ import annotations

import re
from typing import Final, Literal

_SIZE: Final = re.compile(r"(\d{1,30})(?:\.(\d{1,20}))?\s*([kmgtp]?)(i?)(b?)(/s)?", re.IGNORECASE | re.ASCII)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_MAX_SIZE: Final = (1 << 63) - 1

SizeStyle = Literal["text", "exact", "column"]
"""How a size is written.

- ``text``: ``812 bytes``, ``131.4 GiB``; the largest unit is TiB.
- ``exact``: the same, followed by the number of bytes where they differ: ``1.5 MiB (1,572,864 bytes)``.
- ``column``: like a Kubernetes quantity, for columns of kubectl, statuses and events: ``131Gi``, ``1.5Mi``; the largest
  unit is Pi. Empty for 0 and below.
"""


def parse_size(text: str) -> int:
    """Returns the number of bytes that ``text`` stands for.

    Plain bytes, decimal units (``400MB``, ``5G``) or binary units (``16Mi``, ``5GiB``), in upper or lower case, with an
    optional fraction (``1.5Gi``, rounded down). A trailing ``/s`` is ignored, so that rates can be written, too.

    Raises:
        ValueError: The text is not a size, or more than 2^63 - 1 bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[4] and not match[3]):
        raise ValueError(f"{text!r} is not a size; write for example 16Mi, 5GiB, 400MB or plain bytes")
    whole, fraction, unit, binary, _, _ = match.groups()
    digits = fraction or ""
    factor = (1024 if binary else 1000) ** _POWERS[unit.lower()]
    count: int = int(whole + digits) * factor // 10 ** len(digits)
    if count > _MAX_SIZE:
        raise ValueError(f"{text!r} is more than 2^63 - 1 bytes")
    return count


def human_bytes(count: int, style: SizeStyle = "text") -> str:
    """Returns a size in binary units with at most one decimal."""
    if style == "column" and count <= 0:
        return ""
    value, power = float(count), 0
    while abs(value) >= 1024 and power < (5 if style == "column" else 4):
        value /= 1024
        power += 1
    prefix = ("", "Ki", "Mi", "Gi", "Ti", "Pi")[power]
    if style == "column":
        return (f"{value:.1f}".removesuffix(".0") if value < 100 else f"{value:.0f}") + prefix
    text = f"{value:.1f} {prefix}B" if prefix else f"{count} bytes"
    return f"{text} ({count:,} bytes)" if style == "exact" and prefix else text
