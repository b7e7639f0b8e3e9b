"""Words the notes about what a model's files hold, for the report."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tonnage.contract import Layout
from tonnage.format.known_tensors import FUSED_EXPERTS_REMEDY, find_fused_experts, find_wrapper, is_quantized
from tonnage.format.tensor_names import short_repr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.format.tensors_index import TensorEntry
    from tonnage.planning.blueprint import SourceObject


def vllm_load_format(found: Sequence[SourceObject]) -> str:
    """Returns vLLM's load format for shards that have the tensors of its own modules.

    ``sharded_state`` post-processes again what vLLM had post-processed before it wrote the files, and ends.
    """
    quantized = any(each.tensors_index is not None and is_quantized(each.tensors_index.tensors) for each in found)
    return "tonnage" if quantized else "sharded_state"


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


def names_notes(label: str, tensors: Sequence[TensorEntry]) -> list[str]:
    """Returns notes about names that are not those of a checkpoint, because engines refuse or ignore such tensors."""
    notes = []
    wrapper = find_wrapper(tensors)
    if wrapper is not None:
        notes.append(
            f"All names in {label} begin with {wrapper!r}, because a wrapped module was written. transformers fills a "
            "model with random values instead, and other engines refuse it. Write the module inside of the wrapper, "
            "`.module` or `._orig_mod`."
        )
    experts = find_fused_experts(tensors)
    if experts:
        notes.append(
            f"{label} has fused experts, such as {short_repr(experts[0].name)}: names that transformers 5 uses in "
            "memory, not in checkpoints. transformers reads them, and vLLM with --load-format tonnage. Without it vLLM "
            "reads them for some models, such as Qwen3-MoE, and ends for others, such as Mixtral. "
            f"{FUSED_EXPERTS_REMEDY}"
        )
    return notes
