"""Derives from a schema every way in which an object can violate it, one at a time."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Path = tuple[str, ...]
"""Path of a field; ``*`` is any item of a list or value of a map."""

_MISSING = object()
_NON_MATCHING_CANDIDATES = ("!!!!", "a b c", "A_B!", "%d-%d", "x://y")
_OTHER_TYPE = {"string": 7, "integer": "many", "boolean": "yes", "object": "text", "array": "text"}


@dataclass(frozen=True)
class Violation:
    """An object with one invalid field. ``message`` is a part of the API server's error."""

    path: Path
    kind: str
    message: str
    body: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{'.'.join(self.path)}: {self.kind}"


def iter_fields(schema: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields the path and schema of each field, at any depth, the root included."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from iter_fields(child, (*path, name))
    for below in ("items", "additionalProperties"):
        if isinstance(schema.get(below), dict):
            yield from iter_fields(schema[below], (*path, "*"))


def iter_violations(schema: dict[str, Any], samples: list[dict[str, Any]]) -> Iterator[Violation]:
    """Yields a violation of each constraint of a schema.

    Args:
        schema: The structural schema of a CRD.
        samples: Valid objects; each field must be in at least one.

    Raises:
        AssertionError: A field is in no sample.
    """
    for path, field in iter_fields(schema):
        if not path:
            continue
        sample = next((each for each in samples if _get(each, path) is not _MISSING), None)
        assert sample is not None, f"no sample has {'.'.join(path)}"
        for kind, value, message in _field_violations(field, _get(sample, path)):
            yield Violation(path, kind, message, _set(sample, path, value))
        for name in field.get("required", ()):
            yield Violation((*path, name), "missing", "Required value", _set(sample, (*path, name), _MISSING))


def _field_violations(field: dict[str, Any], valid: Any) -> Iterator[tuple[str, Any, str]]:
    """Yields the violations of a field: description, invalid value, and a part of the error."""
    builders: dict[str, Callable[[Any], tuple[str, Any, str]]] = {
        "type": lambda kind: ("of another type", _OTHER_TYPE[kind], "must be of type"),
        "enum": lambda _: ("of no such value", "Nonsense", "Unsupported value"),
        "pattern": lambda form: ("of another form", _non_matching(form), "should match"),
        "minLength": lambda _: ("too short", "", "should be at least"),
        "maxLength": lambda most: ("too long", "a" * (most + 1), "may not be more than"),
        "minimum": lambda least: ("too small", least - 1, "greater than or equal to"),
        "maximum": lambda most: ("too large", most + 1, "less than or equal to"),
        "minItems": lambda _: ("too few", [], "should have at least"),
        "maxItems": lambda most: ("too many", [valid[0]] * (most + 1), "must have at most"),
        "x-kubernetes-list-type": lambda _: ("twice", [valid[0], valid[0]], "Duplicate value"),
    }
    for constraint, build in builders.items():
        if constraint in field:
            yield build(field[constraint])


def _non_matching(pattern: str) -> str:
    return next(text for text in _NON_MATCHING_CANDIDATES if not re.search(pattern, text))


def _get(value: Any, path: Path) -> Any:
    for step in path:
        if isinstance(value, list) and step == "*" and value:
            value = value[0]
        elif isinstance(value, dict) and step == "*" and value:
            value = next(iter(value.values()))
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            return _MISSING
    return value


def _set(sample: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    result = copy.deepcopy(sample)
    inner: Any = result
    for step in path[:-1]:
        inner = _step(inner, step)
    last: Any = path[-1]
    if last == "*":
        last = 0 if isinstance(inner, list) else next(iter(inner))
    if value is _MISSING:
        del inner[last]
    else:
        inner[last] = value
    return result


def _step(value: Any, step: str) -> Any:
    if step != "*":
        return value[step]
    return value[0] if isinstance(value, list) else next(iter(value.values()))
