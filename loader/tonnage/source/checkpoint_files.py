"""Which safetensors files of a folder are the model, as transformers, diffusers and vLLM choose. Pure."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from tonnage.errors import escape_unprintable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from tonnage.contract.selection import Kind

PIPELINE = "model_index.json"
"""Name of the file that lists the components of a diffusers pipeline."""
_ORIGINAL = "original/"
"""Folder with a second copy of the weights, in the format of their authors."""
_CONSOLIDATED = "consolidated"
"""Beginning of the names of a second copy of the weights, in Mistral's or Meta's format."""
_CONFIGURATIONS = frozenset({"config.json", "params.json", PIPELINE, "adapter_config.json", "modules.json"})
"""Names of the files by which libraries recognize the folder of a model."""
_TRAINING_STATE = r"(?P<above>(?:[^/]+/)*?)checkpoint-\d+/.+"
"""What training programs save while they run, each time with all weights. Group 1 is the folder above."""
_OTHER_INDEX = r".+\.(?:bin|pt|pth|h5|msgpack)\.index(?:\.\w+)?\.json"
_WEIGHTS = r"(?P<stem>.+?)(?:-\d+-of-(?P<count>\d+))?\.safetensors"
_VARIANT = r"(?P<stem>[^.]+?)(?:\.(?P<first>\w+))?(?:-\d+-of-\d+)?(?:\.(?P<last>\w+))?\.safetensors"
_INDEX = r"(?P<stem>.+)\.safetensors\.index(?:\.(?P<variant>\w+))?\.json"


class Surplus(NamedTuple):
    """Paths of files that are not the model, and notes about them."""

    paths: frozenset[str]
    notes: tuple[str, ...]


def find_surplus(kinds: Mapping[str, Kind], listed: Collection[str] = ()) -> Surplus:
    """Returns the files beside a model's safetensors files that its libraries don't read.

    These are second copies of the weights (``original/``, ``consolidated*``, a checkpoint in one file beside the
    folders of a diffusers pipeline, variants such as ``*.fp16.*`` beside files without one), ``checkpoint-500/`` and
    the like of a training, and indexes of files in other formats. A copy that is the only one is the model.

    Args:
        kinds: The kind of each file that the patterns select, by path.
        listed: Paths of files that are the model whatever their names are, because an index lists them.
    """
    weights = {path for path, kind in kinds.items() if kind == "tensors"}
    paths: set[str] = set()
    notes: list[str] = []

    def leave_out(named: Collection[str], why: str) -> None:
        found = [path for path in named if path not in listed]
        if found:
            paths.update(found)
            weights.difference_update(found)
            notes.append(_note(found, why))

    if any(not path.startswith(_ORIGINAL) for path in weights):
        leave_out(
            [path for path in kinds if path.startswith(_ORIGINAL)],
            "original/ is a second copy of the weights, which engines don't read",
        )
    leave_out(_training_states(kinds, weights), "states of a training, with older weights than those above them")
    leave_out(_beside_pipelines(kinds, weights), "diffusers reads the folders of the pipeline")
    leave_out(_consolidated(kinds, weights), "a second copy of the weights, which engines don't read")
    leave_out(
        _variants(kinds, weights),
        "libraries read the files without a variant, unless they are asked for one. To load only a variant, use "
        "--include with its name, such as '*.fp16*.safetensors'",
    )
    leave_out(
        [path for path in kinds if path not in paths and re.fullmatch(_OTHER_INDEX, posixpath.basename(path))],
        "an index of files of another format",
    )
    return Surplus(frozenset(paths), tuple(notes))


def find_models_below(kinds: Mapping[str, Kind]) -> list[str]:
    """Returns the folders in which models are, if the top folder is none itself; those that nothing is above.

    So it is in a prefix of several models, and in a copy of ``huggingface_hub``'s cache.

    Args:
        kinds: The kind of each selected file, by path.
    """
    folders = sorted({posixpath.dirname(path) for path in kinds if posixpath.basename(path) in _CONFIGURATIONS})
    weights = [path for path, kind in kinds.items() if kind == "tensors"]
    if "" in folders or any("/" not in path for path in weights):
        return []
    found: list[str] = []
    for folder in folders:
        is_below = any(folder.startswith(f"{above}/") for above in found)
        if not is_below and any(path.startswith(f"{folder}/") for path in weights):
            found.append(folder)
    return found


def find_indexes(paths: Iterable[str]) -> frozenset[str]:
    """Returns the paths of indexes of safetensors files."""
    return frozenset(path for path in paths if re.fullmatch(_INDEX, posixpath.basename(path)))


def missing_shards(paths: Iterable[str]) -> tuple[str, int, int] | None:
    """Returns a file of a numbered set that is not complete, how many there are and how many its name states.

    Args:
        paths: Paths of weights in folders without an index.
    """
    sets: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for path in paths:
        folder, name = posixpath.split(path)
        match = re.fullmatch(_WEIGHTS, name.replace(f".{variant}", "") if (variant := _variant(name)) else name)
        if match is not None and match["count"]:
            sets[folder, match["stem"] + variant, match["count"]].append(path)
    for (_, _, count), members in sorted(sets.items()):
        if len(members) < int(count[:9]):
            return members[0], len(members), int(count[:9])
    return None


def _training_states(kinds: Mapping[str, Kind], weights: Collection[str]) -> list[str]:
    """Returns the files of a training's states, if the folder above them has other weights, in it or below."""
    found = {path: match["above"] for path in kinds if (match := re.fullmatch(_TRAINING_STATE, path))}
    finals = {
        above
        for above in set(found.values())
        if any(path.startswith(above) and found.get(path) != above for path in weights)
    }
    return [path for path, above in found.items() if above in finals]


def _beside_pipelines(kinds: Mapping[str, Kind], weights: Collection[str]) -> list[str]:
    """Returns the weights in the folder of a diffusers pipeline whose components have theirs in folders below it."""
    pipelines = {posixpath.dirname(path) for path in kinds if posixpath.basename(path) == PIPELINE}
    filled = {posixpath.dirname(folder) for path in weights if (folder := posixpath.dirname(path))}
    return [path for path in weights if posixpath.dirname(path) in pipelines & filled]


def _consolidated(kinds: Mapping[str, Kind], weights: Collection[str]) -> list[str]:
    folders = {posixpath.dirname(path) for path in weights if not posixpath.basename(path).startswith(_CONSOLIDATED)}
    return [
        path
        for path in kinds
        if posixpath.dirname(path) in folders
        and (path in weights or re.fullmatch(_INDEX, posixpath.basename(path)))
        and posixpath.basename(path).startswith(_CONSOLIDATED)
    ]


def _variants(kinds: Mapping[str, Kind], weights: Collection[str]) -> list[str]:
    """Returns the variants of files that are also there without one, in the same folder; with their indexes."""
    plain = {
        (posixpath.dirname(path), match["stem"])
        for path in weights
        if (match := re.fullmatch(_VARIANT, posixpath.basename(path))) and not _variant(posixpath.basename(path))
    }
    found = []
    for path in kinds:
        folder, name = posixpath.split(path)
        match = re.fullmatch(_INDEX, name)
        if match is not None and match["variant"] and (folder, match["stem"]) in plain:
            found.append(path)
        match = re.fullmatch(_VARIANT, name)
        if path in weights and match is not None and _variant(name) and (folder, match["stem"]) in plain:
            found.append(path)
    return found


def _variant(name: str) -> str:
    """Returns the variant in a file's name, such as ``fp16``; empty for none."""
    match = re.fullmatch(_VARIANT, name)
    return "" if match is None else match["first"] or match["last"] or ""


def _note(paths: Collection[str], why: str) -> str:
    shown = ", ".join(escape_unprintable(path)[:100] for path in sorted(paths)[:5])
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return f"Left out: {shown}{more}: {why}."
