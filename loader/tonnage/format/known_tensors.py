"""Recognizes tensors by their names: computed buffers, vLLM's mark, and names that are not those of a checkpoint."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tonnage.format.tensor_names import KIND_BUFFER, KIND_PARAMETER

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tonnage.format.tensors_index import TensorEntry

VLLM_MARKER = "vllm_tensorized_marker"
"""Name of the meta parameter that vLLM adds to the root module before it serializes a model."""

WRAPPERS = ("module.", "_orig_mod.")
"""What names of a wrapped module begin with: of ``DistributedDataParallel``, and of ``torch.compile``."""

FUSED_EXPERTS_REMEDY = (
    "For any engine, write a checkpoint from these files, and upload it: load them into transformers' model with "
    "`tonnage.open(MODEL).load_into(model, strict=False)`, then `model.save_pretrained('checkpoint')`."
)
"""What to do with fused experts. The model is one built from the configuration: of a model that its ``from_pretrained``
read from such files, transformers keeps the names."""

_FUSED_EXPERTS = re.compile(r"(?:.*\.)?(?P<module>\w+)\.experts\.gate_up_proj")
_QUANTIZED = re.compile(r"float8_\w+|u?int(8|16|32)")
_CACHED_ANGLES = frozenset({"cos_sin_cache", "cos_cached", "sin_cached"})
_INVERSE_FREQUENCIES = re.compile(r"(?:\w*_)?inv_freq")
"""``inv_freq``, ``original_inv_freq``, and those of one type of layers, such as ``full_attention_inv_freq``."""
_ROTARY_MODULE = re.compile(r"(?!rotary_embeddings$)(?:\w*_)?(?:rotary|rope)(?:_\w*)?")
"""``rotary_emb``, ``rotary_pos_emb``, ``rope_embeddings`` and the like. Not ``rotary_embeddings``, the name in ESM and
Evolla, because their frequencies are part of the state dict, and transformers reports them missing otherwise."""


def is_computed_buffer(name: str, kind: int) -> bool:
    """Returns whether engines compute this tensor from the model's configuration and don't expect it in a checkpoint.

    These are the tables of rotary position embeddings: inverse frequencies of a module whose name has the word
    ``rotary`` or ``rope``, and the cosines and sines of positions of any module. Modules register them as buffers that
    are not part of their state dict, but tensorizer writes them by default, and a ``.tensors`` file doesn't record
    which of its buffers those are.

    Args:
        name: The tensor's flat name.
        kind: The format's tensor kind. Only buffers are computed.
    """
    if kind != KIND_BUFFER:
        return False
    parent, _, last = name.rpartition(".")
    if last in _CACHED_ANGLES:
        return True
    return bool(_INVERSE_FREQUENCIES.fullmatch(last) and _ROTARY_MODULE.fullmatch(parent.rpartition(".")[2]))


def is_vllm_serialized(tensors: Iterable[TensorEntry]) -> bool:
    """Returns whether vLLM serialized a file of these tensors: it has a meta parameter of the root module as a mark.

    Such a file has the tensors of vLLM's own modules, with names and shapes that other engines don't know.
    """
    return any(tensor.name == VLLM_MARKER and tensor.is_meta and tensor.kind == KIND_PARAMETER for tensor in tensors)


def is_quantized(tensors: Iterable[TensorEntry]) -> bool:
    """Returns whether a model's parameters have numbers of 8 bits, or packed ones: vLLM post-processes such weights."""
    return any(
        _QUANTIZED.fullmatch(tensor.dtype.torch_name) and tensor.kind == KIND_PARAMETER and not tensor.is_meta
        for tensor in tensors
    )


def find_fused_experts(tensors: Sequence[TensorEntry]) -> list[TensorEntry]:
    """Returns the experts' weights that have names of transformers 5 in memory, which differ from those of checkpoints.

    transformers 5 holds all experts of a layer in one tensor of three dimensions. Models whose checkpoints have such
    tensors, too, are not meant: gpt-oss (which has ``gate_up_proj_bias``) and Llama 4 (``feed_forward``).
    """
    names = {tensor.name for tensor in tensors}
    found = []
    for tensor in tensors:
        match = _FUSED_EXPERTS.fullmatch(tensor.name)
        in_checkpoints = match is not None and (
            match["module"] == "feed_forward" or f"{tensor.name}_bias" in names or f"{tensor.name}_blocks" in names
        )
        if match is not None and not in_checkpoints and len(tensor.shape) == 3:
            found.append(tensor)
    return found


def find_wrapper(tensors: Sequence[TensorEntry]) -> str | None:
    """Returns what all names begin with because the module was wrapped when it was written; None if it was not."""
    for wrapper in WRAPPERS:
        if tensors and all(tensor.name.startswith(wrapper) for tensor in tensors):
            return wrapper
    return None
