"""Recognizes tensors by their names: buffers that engines compute themselves, and the mark of files that vLLM wrote."""

from __future__ import annotations

import re

from tonnage.format.tensor_names import KIND_BUFFER, KIND_PARAMETER

VLLM_MARKER = "vllm_tensorized_marker"
"""Name of the meta parameter that vLLM adds to the root module before it serializes a model."""

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


def is_vllm_marker(name: str, kind: int, *, is_meta: bool) -> bool:
    """Returns whether this tensor marks a file that vLLM serialized: a meta parameter of the root module.

    Such a file has the tensors of vLLM's own modules, with names and shapes that other engines don't know.

    Args:
        name: The tensor's flat name.
        kind: The format's tensor kind.
        is_meta: Whether the file has no data for it.
    """
    return is_meta and kind == KIND_PARAMETER and name == VLLM_MARKER
