"""Bases of classes that only hold values: as short as dataclasses, and defined in a fiftieth of the time.

A load defines dozens before its first request, and each dataclass would take half a millisecond. Nothing decodes these
classes, so their annotations are never evaluated, and may name what is imported for type checkers only.
"""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, frozen=True):
    """A value that doesn't change; equal to others of its class with equal fields. Name ``frozen=True`` again."""


class MutableRecord(msgspec.Struct):
    """Fields that may be set."""
