"""Rebuilds nested dicts and lists from key paths. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tonnage.errors import FormatDamaged
from tonnage.format.tensor_names import short_repr

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

KeyPath = tuple[str | int, ...]


def unflatten(values: Mapping[KeyPath, Any], *, all_paths: Iterable[KeyPath] | None = None) -> Any:  # noqa: ANN401  # dict or list
    """Builds dicts (for strings in paths) and lists (for integers in paths).

    Args:
        values: Values by path.
        all_paths: All paths of the tree, if ``values`` has only some of them: lists then keep their positions, with
            None for omitted items.

    Raises:
        FormatDamaged: A path continues below a value, a node has both kinds of keys, or a list has gaps.
    """
    root: dict[str | int, Any] = {}
    for path in values if all_paths is None else all_paths:
        node = root
        for step in path[:-1]:
            node = node.setdefault(step, {})
            if not isinstance(node, dict):
                raise FormatDamaged(f"The name {short_repr(_format_path(path))} continues below another tensor.")
        if path[-1] in node:
            raise FormatDamaged(
                f"The name {short_repr(_format_path(path))} is both a tensor and a collection of tensors."
            )
        node[path[-1]] = _Leaf(values.get(path), present=path in values)
    return _build(root, ()) if root else {}


class _Leaf:
    __slots__ = ("present", "value")

    def __init__(self, value: object, *, present: bool) -> None:
        self.value = value
        self.present = present


def _build(node: dict[str | int, Any], path: KeyPath) -> Any:  # noqa: ANN401
    lists = sum(isinstance(key, int) for key in node)
    if lists not in {0, len(node)}:
        raise FormatDamaged(f"{short_repr(_format_path(path))} has both names and list positions below it.")
    if not lists:
        settled = {key: _build_value(child, (*path, key)) for key, child in node.items()}
        present = {key: value for key, value in settled.items() if value is not _ABSENT}
        return present if present or not path else _ABSENT
    if set(node) != set(range(len(node))):
        raise FormatDamaged(
            f"The {len(node)} items of the list {short_repr(_format_path(path))} are not numbered from 0."
        )
    items = [_build_value(node[position], (*path, position)) for position in range(len(node))]
    if path and all(item is _ABSENT for item in items):
        return _ABSENT
    return [None if item is _ABSENT else item for item in items]


_ABSENT = object()


def _build_value(child: Any, path: KeyPath) -> Any:  # noqa: ANN401
    if isinstance(child, _Leaf):
        return child.value if child.present else _ABSENT
    return _build(child, path)


def _format_path(path: KeyPath) -> str:
    return ".".join(map(str, path)) or "the root"
