"""Names of a model's files in the Safetensors layout: those that the readers of each kind of model look for. Pure."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

MODEL = "model"
"""Stem of the files that hold a whole model, for readers of the Hugging Face layout."""
ADAPTER = "adapter_model"
INDEX_SUFFIX = ".safetensors.index.json"
OWN_DIRECTORY = "tonnage"
"""Folder beside the shards, for files that engines shall not list."""
TIED_WEIGHTS = "tied-weights"
"""Beginning of the names of files with second names of tensors."""
LOAD_FORMAT_KEY = "tonnage.load_format"
"""Key of an index's metadata: the only load format that serves the folder. The index then lists no file that exists."""

_SINGLE_FILE_STEMS = frozenset({ADAPTER, "learned_embeds", "pytorch_custom_diffusion_weights", "pytorch_lora_weights"})
"""Stems whose readers (PEFT, vLLM, diffusers) look for one file, and for no index."""
_KEPT_STEMS = _SINGLE_FILE_STEMS | {"consolidated", "diffusion_pytorch_model"}
"""Stems that readers depend on: PEFT's, those of diffusers, and of models in Mistral's format."""
_MODEL_STEMS = frozenset({MODEL, "pytorch_model"})
_PART = r"-\d{5}-of-\d{5}"
_SOURCE_NAME = rf"(?P<stem>\w+)(?P<first>\.\w+)?(?:{_PART})?(?P<last>\.\w+)?\.(?:safe)?tensors"
_OWN_FILE_OF_RANK = r"[a-z-]+-rank-\d+\.safetensors"
_STATE = "state"
"""Stem of the files of a rank that ``sharded_state`` must not find."""
_MAIN_SHARD = rf"{MODEL}(?:{_PART})?\.safetensors|(?:{MODEL}|{_STATE})-rank-\d+-part-\d+\.safetensors"


class Stem(NamedTuple):
    """What the names of a group's shards begin with, and their variant, such as ``fp16``; empty for none."""

    name: str
    variant: str = ""

    @property
    def is_single_file(self) -> bool:
        """Whether readers look for one file only, so that it must not be divided."""
        return self.name in _SINGLE_FILE_STEMS

    def shard(self, number: int, count: int) -> str:
        """Returns the name of shard ``number``, from 0, of ``count``."""
        part = "" if count == 1 else f"-{number + 1:05d}-of-{count:05d}"
        return f"{self.name}{self._dotted}{part}.safetensors"

    @property
    def index_name(self) -> str:
        """Name of the index of several shards."""
        return f"{self.name}.safetensors.index{self._dotted}.json"

    @property
    def computed_buffers(self) -> str:
        """Path, below the shards' folder, of the file of buffers that engines compute."""
        return self._own_file("computed-buffers")

    @property
    def tied_weights(self) -> str:
        """Path, below the shards' folder, of the file of output heads that engines take from the embedding."""
        return self._own_file(TIED_WEIGHTS)

    def _own_file(self, kind: str) -> str:
        suffix = "" if self == Stem(MODEL) else f"-{self.name}{self._dotted}"
        return f"{OWN_DIRECTORY}/{kind}{suffix}.safetensors"

    @property
    def _dotted(self) -> str:
        return f".{self.variant}" if self.variant else ""


def is_single_file(path: str) -> bool:
    """Returns whether readers look for a file by its name, such as that of an adapter, and for no index."""
    match = re.fullmatch(_SOURCE_NAME, posixpath.basename(path))
    return match is not None and Stem(match["stem"]).is_single_file


def source_stem(path: str, paths: Collection[str]) -> Stem:
    """Returns the stem of the shards of a ``.tensors`` file.

    The file's own stem is kept if a reader depends on it; all others become ``model``, which any engine reads:

    * ``adapter_model`` (PEFT, vLLM), and any name in a folder with ``adapter_config.json`` and without ``config.json``
    * ``diffusion_pytorch_model``, ``pytorch_lora_weights`` and more that diffusers look for
    * ``consolidated``, Mistral's own format
    * variants of these, such as ``diffusion_pytorch_model.fp16``, and of ``model`` where a reader can ask for one: in a
      diffusers pipeline, or beside the model itself

    Args:
        path: The file's path.
        paths: Paths of all objects of the model.
    """
    folder, name = posixpath.split(path)
    match = re.fullmatch(_SOURCE_NAME, name)
    stem = match["stem"] if match is not None else ""
    variant = ((match["first"] or match["last"] or "") if match is not None else "").removeprefix(".")
    if stem in _KEPT_STEMS:
        return Stem(stem, "" if stem in _SINGLE_FILE_STEMS else variant)
    if stem in _MODEL_STEMS and variant:
        is_choice = f"{posixpath.join(folder, stem)}.tensors" in paths or _is_in_pipeline(folder, paths)
        return Stem(MODEL, variant if is_choice else "")
    if (
        stem not in _MODEL_STEMS
        and posixpath.join(folder, "adapter_config.json") in paths
        and posixpath.join(folder, "config.json") not in paths
    ):
        return Stem(ADAPTER)
    return Stem(MODEL)


def rank_shard(rank: int, number: int, *, for_sharded_state: bool = True) -> str:
    """Returns the name of part ``number`` of a rank: as vLLM's ``sharded_state`` looks for it, or one like it."""
    return f"{MODEL if for_sharded_state else _STATE}-rank-{rank}-part-{number}.safetensors"


def without_refusals(names: Sequence[str]) -> list[str]:
    """Returns the names of a folder's files without those because of which ``sharded_state`` refuses the folder."""
    ranks = {match[1] for name in names if (match := re.match(rf"{_STATE}-rank-(\d+)-", name))}
    return [name for name in names if not ((match := re.match(rf"{MODEL}-rank-(\d+)-", name)) and match[1] in ranks)]


def rank_computed_buffers(rank: int) -> str:
    """Returns the path, below the shards' folder, of the file of a rank's buffers that engines compute."""
    return f"{OWN_DIRECTORY}/computed-buffers-rank-{rank}.safetensors"


def rank_tied_weights(rank: int) -> str:
    """Returns the path, below the shards' folder, of the file of a rank's second names of tied weights."""
    return f"{OWN_DIRECTORY}/{TIED_WEIGHTS}-rank-{rank}.safetensors"


def is_own_file(path: str) -> bool:
    """Returns whether a shard's path is in the folder of files that engines shall not list."""
    return posixpath.basename(posixpath.dirname(path)) == OWN_DIRECTORY


def is_beside_the_model(path: str, indexes: Collection[str]) -> bool:
    """Returns whether a shard belongs to another model than the main one of its folder, such as an adapter to its base.

    Args:
        path: The shard's path.
        indexes: Paths of all indexes. A folder with several models has one for the main model.
    """
    folder, name = posixpath.split(path)
    main = Stem(MODEL)
    if is_own_file(path):
        folder = posixpath.dirname(folder)
        own_files = {main.computed_buffers, main.tied_weights}
        is_main = f"{OWN_DIRECTORY}/{name}" in own_files or re.fullmatch(_OWN_FILE_OF_RANK, name) is not None
    else:
        is_main = re.fullmatch(_MAIN_SHARD, name) is not None
    return not is_main and posixpath.join(folder, main.index_name) in indexes


def _is_in_pipeline(folder: str, paths: Collection[str]) -> bool:
    """Returns whether a folder is a component of a diffusers pipeline."""
    return bool(folder) and posixpath.join(posixpath.dirname(folder), "model_index.json") in paths
