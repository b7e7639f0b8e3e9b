"""Which objects of a source belong to a model, by their names. Pure.

Both programs need it: the loader selects, and the operator accepts no other objects in a loader's report.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.contract.plan import FileSelection

Kind = Literal["tensors", "companion"]

TENSORS_SUFFIX = ".tensors"


def classify_path(path: str, files: FileSelection, *, explicit: bool = False) -> Kind | None:
    """Returns the kind of a file, or None if it does not belong to the model.

    Args:
        path: The key without the prefix.
        files: The patterns; each is matched against the whole path and against its last part.
        explicit: The source names the key, so it is a companion even if no pattern matches.
    """
    if matches(path, files.exclude):
        return None
    if path.endswith(TENSORS_SUFFIX):
        return "tensors" if matches(path, files.tensors) else None
    return "companion" if explicit or matches(path, files.companions) else None


def key_directory(prefix: str | None, keys: Sequence[str] = ()) -> str:
    """Returns the part of an S3 source's keys that is not part of the paths: empty, or a directory with its slash."""
    if prefix is None:
        return common_directory(keys)
    return prefix if not prefix or prefix.endswith("/") else f"{prefix}/"


def common_directory(keys: Sequence[str]) -> str:
    """Returns the longest common directory of the keys, with its trailing slash; empty for the top level."""
    directories = [key.split("/")[:-1] for key in keys]
    shared = []
    for parts in zip(*directories, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join([*shared, ""]) if shared else ""


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Returns whether a pattern matches the whole path or its last part."""
    name = path.rpartition("/")[2]
    return any(fnmatchcase(path, pattern) or fnmatchcase(name, pattern) for pattern in patterns)
