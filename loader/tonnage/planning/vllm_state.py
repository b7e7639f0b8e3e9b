"""Which load format of vLLM serves files that vLLM serialized, and what makes all other readers refuse them. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tonnage.format.dtypes import dtype_from_safetensors
from tonnage.format.known_tensors import find_held_twice, find_undecided_buffers, is_quantized
from tonnage.format.safetensors import ShardTensor, build_shard_header
from tonnage.planning.file_names import LOAD_FORMAT_KEY, MODEL, Stem, rank_shard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.planning.blueprint import SourceObject

SHARDED_STATE = "sharded_state"
TONNAGE = "tonnage"


def vllm_load_format(found: Sequence[SourceObject]) -> str:
    """Returns vLLM's load format for shards that have the tensors of its own modules.

    ``sharded_state`` post-processes again what vLLM had post-processed before it wrote the files, and ends. It also
    ends at any name that is not part of the model's state, so all buffers must be known, and no module may be held in
    two places. Files of ranks it must not find by default: with fewer ranks than they were written for, it copies each
    tensor into the first part of a larger one, leaves the rest as it is, and serves wrong tokens without an error.
    """
    tensors = [each.tensors_index.tensors for each in found if each.tensors_index is not None]
    if any(each.rank is not None for each in found):
        return TONNAGE
    if any(is_quantized(each) or find_undecided_buffers(each) or find_held_twice(each) for each in tensors):
        return TONNAGE
    return SHARDED_STATE


def refusal_files(load_format: str, rank: int, identity: Mapping[str, str]) -> dict[str, bytes]:
    """Returns files, by name, because of which engines refuse a folder that they would fill with wrong values.

    Readers of the index end, because it lists a file that doesn't exist, and show that file's name. A reader of all
    safetensors files ends at a tensor that no model has, and shows its name. vLLM's ``sharded_state`` reads none of
    them; where it doesn't serve the files, it finds such a tensor under the name that it looks for.

    Args:
        load_format: The load format that serves the folder.
        rank: The rank of the folder's shards.
        identity: Metadata of each shard that names the revision.
    """
    tensor = f"start_vllm_with_load_format_{load_format}"
    index = {
        "metadata": {"total_size": 0, LOAD_FORMAT_KEY: load_format},
        "weight_map": {tensor: f"start vLLM with --load-format {load_format}"},
    }
    shard = ShardTensor(tensor, dtype_from_safetensors("U8", where=tensor), (1,), 1)
    header, _ = build_shard_header([shard], metadata={"format": "pt", **identity}, label=tensor)
    content = header + bytes(1)
    files = {Stem(MODEL).index_name: json.dumps(index, indent=1).encode(), Stem(tensor).shard(0, 1): content}
    return files if load_format == SHARDED_STATE else files | {rank_shard(rank, 0): content}
