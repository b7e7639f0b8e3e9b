"""Words the notes about what a model's files hold, for the report."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tonnage.contract import Layout
from tonnage.format.known_tensors import FUSED_EXPERTS_REMEDY, find_fused_experts, find_wrapper
from tonnage.format.tensor_names import short_repr
from tonnage.planning.vllm_state import vllm_load_format

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.format.tensors_index import TensorEntry
    from tonnage.planning.blueprint import SourceObject


def separated_note(buffers: Sequence[TensorEntry], paths: Sequence[str]) -> str:
    """Returns the note about buffers that are not in the shards: how many, and in which files."""
    one = len(buffers) == 1
    count = "1 buffer" if one else f"{len(buffers)} buffers"
    name = ("" if one else "such as ") + short_repr(buffers[0].name)
    where = paths[0] if len(paths) == 1 else f"{len(paths)} files such as {paths[0]}"
    return (
        f"{count} that engines compute themselves, {name}, {'is' if one else 'are'} in {where}, which engines don't "
        "list, and not in the shards. `tonnage.open` reads both. To have all tensors in the shards, load with "
        "--computed-buffers in-shards."
    )


def tied_note(heads: Sequence[TensorEntry]) -> str:
    """Returns the note about output heads that are not in the shards."""
    return (
        f"{short_repr(heads[0].name)} is the embedding, by the files' checksums and config.json, so it is in the "
        "folder tonnage/ and not in the shards, as in a checkpoint: some engines refuse it. `tonnage.open` reads both. "
        "To have all tensors in the shards, load with --computed-buffers in-shards."
    )


def vllm_command(found: Sequence[SourceObject], layout: Layout) -> str:
    """Returns the command that serves files that vLLM serialized. MODEL stands for the folder of the entry's files.

    Args:
        found: The files.
        layout: The layout of the entry.
    """
    first = found[0]
    flags = f"--load-format {vllm_load_format(found)}"
    if layout is Layout.TENSORIZER:
        path = first.path
        if first.rank is not None:
            path = re.sub(r"\d+(?=\.tensors$)", lambda digits: f"%0{len(digits[0])}d", path)
        flags = f'--load-format tensorizer --model-loader-extra-config \'{{"tensorizer_uri": "MODEL/{path}"}}\''
    if first.rank is not None:
        flags += " --tensor-parallel-size RANKS"
    return f"vllm serve MODEL {flags}"


def vllm_note(found: Sequence[SourceObject], layout: Layout) -> str:
    """Returns the note about files that vLLM serialized: what serves them, and with which flags."""
    first = found[0]
    what = f"{first.label} was" if len(found) == 1 else f"{len(found)} files, such as {first.label}, were"
    return (
        f"{what} serialized by vLLM and has the tensors of its own modules, which transformers and other engines can't "
        f"use. To serve: `{vllm_command(found, layout)}`, where MODEL is the folder of the entry's files. "
        "--load-format tonnage, which serves all such files, needs Tonnage beside vLLM."
    )


def ranks_note(found: Sequence[SourceObject]) -> str:
    """Returns the note about files of ranks that vLLM's ``sharded_state`` finds."""
    names = "has" if len(found) == 1 else f"and {len(found) - 1} other files have"
    return (
        f"{found[0].label} {names} the tensors of single ranks. vLLM's --load-format sharded_state doesn't compare the "
        "number of ranks: with a smaller --tensor-parallel-size than the files are for, it gives wrong tokens without "
        "an error. --load-format tonnage refuses that."
    )


def names_notes(label: str, tensors: Sequence[TensorEntry], *, is_checkpoint: bool) -> list[str]:
    """Returns notes about names that are not those of a checkpoint, because engines refuse or ignore such tensors.

    Args:
        label: Name of the file.
        tensors: Its tensors.
        is_checkpoint: Whether it is a safetensors file, whose fused experts are those of the checkpoint.
    """
    notes = []
    wrapper = find_wrapper(tensors)
    if wrapper is not None:
        part, name = wrapper
        notes.append(
            f"Names in {label} have {part!r} in them, such as {short_repr(name)}: a wrapped module was written. "
            "transformers fills a model with random values instead, and other engines refuse it. Write the module "
            "inside of the wrapper, such as `.module` or `._orig_mod`; of a PEFT model, what `merge_and_unload()` "
            "returns."
        )
    experts = [] if is_checkpoint else find_fused_experts(tensors)
    if experts:
        notes.append(
            f"{label} has fused experts, such as {short_repr(experts[0].name)}: names that transformers 5 uses in "
            "memory, not in checkpoints. transformers reads them, and vLLM with --load-format tonnage. Without it vLLM "
            "reads them for some models, such as Qwen3-MoE, and ends for others, such as Mixtral. "
            f"{FUSED_EXPERTS_REMEDY}"
        )
    return notes
