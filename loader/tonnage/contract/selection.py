"""Which objects of a source belong to a model, by their names. Pure.

Both programs need it: the loader selects, and the operator accepts no other objects in a loader's report.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from tonnage.contract.plan import DEFAULT_TENSOR_PATTERNS, RankSelection, Weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tonnage.contract.plan import FileSelection

Kind = Literal["tensors", "companion"]

TENSORS_SUFFIX = ".tensors"
SAFETENSORS_SUFFIX = ".safetensors"
UNFINISHED = ".tonnage-unfinished.json"
"""Name of the object with which ``tonnage serialize`` marks a prefix that it is writing: loads refuse the prefix."""
RESERVED = ".tonnage"
"""Names that begin with it are those of the cache's own files: a model with one could pass for an entry."""
SHARDED_STATE = "model-rank-%d-part-*.safetensors"
"""Names of the files of vLLM's ``sharded_state``: several for each rank."""


def classify_path(
    path: str, files: FileSelection, *, explicit: bool = False, weights: Weights | None = None
) -> Kind | None:
    """Returns the kind of a file, or None if it does not belong to the model.

    Args:
        path: The key without the prefix.
        files: The patterns; each is matched against the whole path and against its last part.
        explicit: The source names the key, so it is a companion even if no pattern matches.
        weights: The source's weights, as ``choose_weights`` returns them. None: as in ``files``; with ``Weights.AUTO``,
            a file of either kind may belong to the model.
    """
    weights = weights or files.weights
    if matches(path, files.exclude) or (not explicit and _is_hidden(path, files)):
        return None
    if path.endswith(TENSORS_SUFFIX):
        return "tensors" if weights is not Weights.SAFETENSORS and matches(path, _tensors_patterns(files)) else None
    if (
        path.endswith(SAFETENSORS_SUFFIX)
        and weights is not Weights.TENSORIZER
        and matches(path, _safetensors_patterns(files))
    ):
        return "tensors"
    return "companion" if explicit or matches(path, files.companions) else None


def choose_weights(paths: Iterable[str], files: FileSelection) -> Weights:
    """Returns which files of a source are the weights: those of the plan, or ``.safetensors`` if no ``.tensors`` match.

    Args:
        paths: The paths of all objects.
        files: The patterns.
    """
    if files.weights is not Weights.AUTO:
        return files.weights
    found = {path.rpartition(".")[2] for path in paths if classify_path(path, files) == "tensors"}
    return Weights.SAFETENSORS if found == {SAFETENSORS_SUFFIX.removeprefix(".")} else Weights.TENSORIZER


def rank_pattern(pattern: str, weights: Weights) -> str:
    """Returns the pattern of names of ranks in effect: safetensors files have another default than ``.tensors`` files.

    Args:
        pattern: The pattern of the plan.
        weights: The source's weights, as ``choose_weights`` returns them.
    """
    return SHARDED_STATE if weights is Weights.SAFETENSORS and pattern == RankSelection().pattern else pattern


def rank_expression(pattern: str) -> re.Pattern[str] | None:
    """Converts a printf pattern with one integer field to a regular expression; group 1 is the number.

    In a pattern of ``.safetensors`` files, ``*`` stands for any text, because a rank may have several files.

    Returns:
        None if the pattern does not have exactly one integer field.
    """
    literal = r"((?:[^%]|%%)*)"
    match = re.fullmatch(literal + r"%(0?)(\d{0,3})[di]" + literal, pattern, re.DOTALL)
    if match is None:
        return None
    before, zero, width, after = match.groups()
    digits = rf"\d{{{width},}}" if zero and width else r"\d+"
    before, after = (re.escape(text.replace("%%", "%")) for text in (before, after))
    if pattern.endswith(SAFETENSORS_SUFFIX):
        before, after = (text.replace(r"\*", ".*") for text in (before, after))
    return re.compile(f"{before}({digits}){after}", re.ASCII)


def _is_hidden(path: str, files: FileSelection) -> bool:
    """Returns whether a file is one that programs leave behind, such as ``._model.safetensors``, which no reader lists.

    A pattern that names hidden files selects them. Reserved names are not hidden: they are refused.
    """
    parts = [part for part in path.split("/") if part not in {".", ".."} and not part.startswith(RESERVED)]
    if not any(part.startswith(".") for part in parts):
        return False
    named = [pattern for pattern in (*files.tensors, *files.companions) if pattern.startswith(".") or "/." in pattern]
    return not matches(path, named)


def _tensors_patterns(files: FileSelection) -> Sequence[str]:
    return [pattern for pattern in files.tensors if not pattern.endswith(SAFETENSORS_SUFFIX)]


def _safetensors_patterns(files: FileSelection) -> Sequence[str]:
    """Returns the patterns of safetensors files. By default, or if there are none for them, all match."""
    patterns = [pattern for pattern in files.tensors if not pattern.endswith(TENSORS_SUFFIX)]
    if not patterns and (files.weights is Weights.SAFETENSORS or tuple(files.tensors) == DEFAULT_TENSOR_PATTERNS):
        return [f"*{SAFETENSORS_SUFFIX}"]
    return patterns


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
