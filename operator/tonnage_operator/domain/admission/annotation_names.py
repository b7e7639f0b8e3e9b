"""Misspelled annotations: each name below ``tonnage.dev/`` on a pod must be one that exists."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Mapping

_PREFIX: Final = f"{names.GROUP}/"
_KNOWN: Final = frozenset(
    value for value in vars(names).values() if isinstance(value, str) and value.startswith(_PREFIX)
)
_SHORT: Final = {name.removeprefix(_PREFIX).replace("-", ""): name for name in names.POD_ANNOTATIONS}
"""Annotations that users can set, by their name without prefix and dashes."""
_SIMILARITY: Final = 0.7
"""Similarity, from 0 to 1, of two names of which one is a misspelling of the other."""


def nearest_annotation(name: str) -> str:
    """Returns the annotation that a misspelled name probably means; empty if none is similar."""
    short = name.removeprefix(_PREFIX).lower().replace("-", "").replace("_", "").replace(".", "")
    found = difflib.get_close_matches(short, _SHORT, n=1, cutoff=_SIMILARITY)
    return _SHORT[found[0]] if found else ""


def find_misspelling(annotations: Mapping[str, str]) -> str:
    """Returns a sentence about the first annotation below ``tonnage.dev/`` that doesn't exist; empty if all exist."""
    for name in sorted(annotations):
        if name.startswith(_PREFIX) and name not in _KNOWN:
            nearest = nearest_annotation(name)
            hint = f"did you mean {nearest}?" if nearest else f"the annotations are {', '.join(names.POD_ANNOTATIONS)}."
            return f"The annotation {name} doesn't exist: {hint}"
    return ""


def find_idle_annotation(annotations: Mapping[str, str]) -> str:
    """Returns a sentence about an annotation that has no effect, because the pod requests no model; else empty."""
    if names.MODEL in annotations or names.MODELS in annotations or names.INJECT in annotations:
        return ""
    idle = next((name for name in names.POD_ANNOTATIONS if name in annotations), "")
    return f"{idle} has no effect without {names.MODEL} or {names.MODELS}." if idle else ""
