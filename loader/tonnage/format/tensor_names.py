"""Tensor names: as stored in the file, as a path, and as the flat name that engines use."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Protocol

from tonnage.errors import FormatDamaged, NameCollision

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

TensorPath = tuple[str | int, ...]
"""Keys of nested dicts (str) and indexes of lists (int), outermost first. A flat name is a path of one string."""

KIND_PARAMETER = 0
KIND_BUFFER = 1
KIND_STATE_DICT = 2

RESERVED_NAME = "__metadata__"
"""The only key of a safetensors header that is not a tensor."""

_NESTED_MARK = 0x1E
_MAX_REPR_CHARACTERS = 100


class Named(Protocol):
    """Anything with a flat name."""

    @property
    def name(self) -> str:
        """The flat name."""


def short_repr(name: str | bytes) -> str:
    """Returns a name for error texts: quoted, escaped and truncated, because names may be 64 KiB of arbitrary bytes."""
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    if len(text) > _MAX_REPR_CHARACTERS:
        return f"{text[:_MAX_REPR_CHARACTERS]!r}… ({len(text)} characters)"
    return repr(text)


def parse_name(raw: bytes, kind: int, *, where: str) -> TensorPath:
    """Parses a stored name into a path.

    Args:
        raw: The bytes of the name field: UTF-8 text, or the byte 0x1E and a JSON array of strings and list indexes.
        kind: 0 parameter, 1 buffer, 2 entry of a state dict; only the last may be nested.
        where: Prefix of error texts: the object and the position in it.

    Raises:
        FormatDamaged: The name is empty, not UTF-8, or not an array of strings and non-negative integers.
    """
    if not raw:
        raise FormatDamaged(f"{where}: the name is empty.")
    if raw[0] != _NESTED_MARK:
        try:
            return (raw.decode(),)
        except UnicodeDecodeError as error:
            raise FormatDamaged(f"{where}: the name {short_repr(raw)} is not UTF-8.") from error
    if kind != KIND_STATE_DICT:
        raise FormatDamaged(f"{where}: the nested name {short_repr(raw)} is allowed in state dicts only.")
    return _nested(raw, where=where)


def _nested(raw: bytes, *, where: str) -> TensorPath:
    if raw[1:2] != b"[" or raw[-1:] != b"]" or b"\n" in raw or b"\r" in raw:
        raise FormatDamaged(f"{where}: the nested name {short_repr(raw)} is not a JSON array on one line.")
    try:
        path = json.loads(raw[1:].decode())
    except (ValueError, RecursionError) as error:
        raise FormatDamaged(f"{where}: the nested name {short_repr(raw)} is not JSON.") from error
    if not path or not all(_is_component(component) for component in path):
        raise FormatDamaged(
            f"{where}: the nested name {short_repr(raw)} must be a list of one or more strings and list indexes."
        )
    return tuple(path)


def _is_component(component: object) -> bool:
    if isinstance(component, str):
        # JSON can express half of a surrogate pair, which UTF-8 can't encode.
        return not any("\ud800" <= character <= "\udfff" for character in component)
    return type(component) is int and component >= 0


def flat_name(path: TensorPath, kind: int) -> str:
    """Returns the name that engines use for a tensor.

    Nested paths are joined by dots. Tensors of a root module are stored with a leading dot, which the module's own
    state dict doesn't have. It is removed from parameters and buffers; entries of state dicts keep theirs.
    """
    name = ".".join(map(str, path)) if len(path) > 1 else str(path[0])
    if kind != KIND_STATE_DICT and len(name) > 1 and name[0] == ".":
        return name[1:]
    return name


def check_flat_names(tensors: Iterable[Named], *, label: str, seen: MutableMapping[str, str] | None = None) -> None:
    """Checks that flat names are unique, as the safetensors layout requires.

    Args:
        tensors: The tensors of an object.
        label: How error texts call the object.
        seen: Flat names of objects checked before, with the object's label; this object's are added. Pass the same
            mapping for all objects that share a namespace.

    Raises:
        NameCollision: Two tensors have the same flat name, or a tensor is named ``__metadata__``, which safetensors
            reserves.
    """
    known: MutableMapping[str, str] = {} if seen is None else seen
    stored: dict[str, Named] = {}
    for tensor in tensors:
        flat = tensor.name
        if flat == RESERVED_NAME:
            raise NameCollision(
                f"{label}: a tensor has the name {RESERVED_NAME!r}, which the safetensors format reserves."
            )
        if flat in stored:
            raise NameCollision(
                f"{label}: the tensors {_as_stored(stored[flat])} and {_as_stored(tensor)} would both be named "
                f"{short_repr(flat)} in the safetensors layout."
            )
        if flat in known:
            raise NameCollision(f"The tensor {short_repr(flat)} is in {known[flat]} and in {label}.")
        stored[flat] = tensor
    known.update(dict.fromkeys(stored, label))


def _as_stored(tensor: Named) -> str:
    return short_repr(getattr(tensor, "raw_name", tensor.name))
