"""Reads fields of objects as the API server returned them: whatever is missing or of another type is empty. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

Body = dict[str, Any]


def part(body: Mapping[str, Any] | None, *path: str) -> Body:
    """Returns the object at a path of fields; empty if there is none."""
    found: Any = body
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def items(body: Mapping[str, Any] | None, *path: str) -> list[Body]:
    """Returns the objects in the list at a path of fields."""
    found = part(body, *path[:-1]).get(path[-1])
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list | tuple) else []


def text(body: Mapping[str, Any] | None, *path: str) -> str:
    """Returns the value at a path of fields as text; empty if there is none."""
    found = part(body, *path[:-1]).get(path[-1])
    return "" if found is None or isinstance(found, dict | list) else str(found)


def number(body: Mapping[str, Any] | None, *path: str) -> int:
    """Returns the whole number at a path of fields; 0 if there is none."""
    found = part(body, *path[:-1]).get(path[-1])
    return int(found) if isinstance(found, int | float) else 0


def name_of(body: Mapping[str, Any]) -> str:
    return text(body, "metadata", "name")


def reference_of(body: Mapping[str, Any]) -> str:
    """Returns ``namespace/name``."""
    return f"{text(body, 'metadata', 'namespace')}/{name_of(body)}"


def conditions_of(body: Mapping[str, Any]) -> dict[str, Body]:
    """Returns the conditions of an object by type."""
    return {text(each, "type"): each for each in items(body, "status", "conditions")}
