"""Which files of a checkpoint's folder are its weights: an index decides, as in transformers and vLLM."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

import msgspec

from tonnage.contract.plan import DECODE_ERRORS
from tonnage.errors import FormatDamaged, ObjectNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_SAFETENSORS = ".safetensors"
_INDEX = ".safetensors.index.json"
_BIN_INDEX = ".bin.index.json"


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def select_weights(paths: Sequence[str], folder: Path) -> tuple[frozenset[str], list[str]]:
    """Returns the paths of the weights, and remarks about files that were left out.

    Args:
        paths: Paths of all files.
        folder: Where they are.

    Raises:
        ObjectNotFound: An index lists a file that does not exist.
        FormatDamaged: An index can't be parsed.
    """
    original = [path for path in paths if "original" in path.split("/")[:-1]]
    kept = [path for path in paths if path not in set(original)]
    chosen = _choose(kept, folder, suffix=_SAFETENSORS, index=_INDEX)
    if not chosen:
        chosen = _choose([path for path in kept if _is_bin(path)], folder, suffix=".bin", index=_BIN_INDEX)
    candidates = [path for path in paths if path.endswith((_SAFETENSORS, ".bin", ".pth", ".pt", ".gguf"))]
    left_out = [path for path in candidates if path not in chosen]
    more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
    remarks = [f"Left out, because they are not the model's weights: {', '.join(left_out[:5])}{more}."]
    return frozenset(chosen), remarks if left_out and chosen else []


def _is_bin(path: str) -> bool:
    return posixpath.basename(path).startswith("pytorch_model") and path.endswith((".bin", _BIN_INDEX))


def _choose(paths: Sequence[str], root: Path, *, suffix: str, index: str) -> set[str]:
    found = {path for path in paths if path.endswith(suffix)}
    for path in paths:
        if not path.endswith(index):
            continue
        folder, stem = posixpath.split(path.removesuffix(index))
        listed = {posixpath.join(folder, name) for name in _read_index(path, (root / path).read_bytes())}
        missing = sorted(listed - found)
        if missing:
            raise ObjectNotFound(
                f"{path} lists {missing[0]}, which does not exist.",
                remedy="Complete the source: copy the missing file, or the whole model again.",
            )
        found -= {
            each
            for each in found - listed
            if posixpath.dirname(each) == folder and posixpath.basename(each).startswith((f"{stem}-", f"{stem}."))
        }
    others = {each for each in found if posixpath.basename(each).startswith("consolidated")}
    folders = {posixpath.dirname(each) for each in found - others}
    return found - {each for each in others if posixpath.dirname(each) in folders}


def _read_index(path: str, data: bytes) -> set[str]:
    try:
        names = set(msgspec.json.decode(data, type=_Index).weight_map.values())
    except DECODE_ERRORS as error:
        raise FormatDamaged(f"{path} is not an index of weights: {error}.") from error
    return names
