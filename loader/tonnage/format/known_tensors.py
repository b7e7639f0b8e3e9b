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

_WHOLE_WRAPPERS = ("module.", "base_model.model.")
"""What all names of a wrapped model begin with: of ``DistributedDataParallel``, and of PEFT."""
_WRAPPERS = re.compile(r"(?:.*\.)?(?P<wrapper>_orig_mod|_(?:fsdp|checkpoint)_wrapped_module|_forward_module)\..*")
"""What names of wrapped modules of a model have in them: of ``torch.compile``, FSDP, checkpoints of activations, and
Lightning."""

FUSED_EXPERTS_REMEDY = (
    "For any engine, write a checkpoint from these files, and upload it: load them into transformers' model with "
    "`tonnage.open(MODEL).load_into(model, strict=False)`, then `model.save_pretrained('checkpoint')`."
)
"""What to do with fused experts. The model is one built from the configuration: of a model that its ``from_pretrained``
read from such files, transformers keeps the names."""

_FUSED_EXPERTS = re.compile(r"(?P<module>(?:.*\.)?\w+)\.experts\.(?:gate_)?up_proj")
_HELD_TWICE = re.compile(r"(?:.*\.)?(?:mlp\.gate\.weight|shared?_(?:experts?|mlp)\..+|kv_b_proj\..+)")
"""Tensors of modules that vLLM's models hold in two places: routers and shared experts, which the experts have, too,
and those of latent attention."""
_QUANTIZED = re.compile(r"float8_\w+|u?int(8|16|32)")
_CACHED_ANGLES = re.compile(r"(?:\w+_)?cos_sin(?:_\w+)?_cache(?:_\w+)?|(?:cos|sin)_cached|freqs_cis?")
"""``cos_sin_cache``, ``long_short_cos_sin_cache``, ``cos_cached`` and the like."""
_COMPUTED = frozenset(
    {
        "embed_scale",
        "embed_scale_per_layer",
        "gradient_clipping",
        "normalizer",
        "per_layer_input_scale",
        "per_layer_projection_scale",
        "router_input_scale",
        "softcap",
        "token_type_ids",
        "visual_bbox",
    }
)
"""Numbers that Gemma's modules compute from the configuration, and the zeros that BERT's have for texts of one part."""
_CAUSAL_MASK = re.compile(r"(?:.*\.)?(?:transformer|attn|attention)\.(?:masked_)?bias")
"""The mask of GPT-2's attention, and the value for what it hides. A bias that is trained is a parameter."""
_UNIT_NORM = re.compile(r"(?:.*\.)?mixer\.(?:(?:b|c|dt)_layernorm\.weight|(?:b_c|dt)_rms)")
"""Ones, with which Falcon-Mamba normalizes. Norms that are trained are parameters."""
_SINUSOIDS = re.compile(r"(?:.*\.)?embed_positions(?:\.weights)?")
"""Buffers of GPT-J, M2M100 and the like. Positions that are trained are parameters."""
_STATE_OF_VLLM = frozenset(
    {
        "_k_scale",
        "_prob_scale",
        "_q_scale",
        "_v_scale",
        "e_score_correction_bias",
        "layer_scalar",
        "num_batches_tracked",
        "running_mean",
        "running_var",
    }
)
"""Buffers that are part of the state of vLLM's modules."""
_INVERSE_FREQUENCIES = re.compile(r"(?:\w*_)?inv_freq")
"""``inv_freq``, ``original_inv_freq``, and those of one type of layers, such as ``full_attention_inv_freq``."""
_ROTARY_MODULE = re.compile(r"(?!rotary_embeddings$)(?:\w*_)?(?:rotary|rope)(?:_\w*)?|patch_positional_embedding")
"""``rotary_emb``, ``rotary_pos_emb``, ``rope_embeddings`` and the like, and what Pixtral calls it. Not
``rotary_embeddings``, the name in ESM and Evolla, because their frequencies are part of the state dict, and
transformers reports them missing otherwise."""


def is_computed_buffer(name: str, kind: int) -> bool:
    """Returns whether engines compute this tensor from the model's configuration and don't expect it in a checkpoint.

    These are the tables of rotary position embeddings: inverse frequencies of a module whose name has the word
    ``rotary`` or ``rope``, and the cosines and sines of positions of any module; and what follows from the
    configuration, such as the scale of Gemma's embeddings. Modules register them as buffers that are not part of their
    state dict, but tensorizer writes them by default, and a ``.tensors`` file doesn't record which of its buffers those
    are.

    Args:
        name: The tensor's flat name.
        kind: The format's tensor kind. Only buffers are computed.
    """
    if kind != KIND_BUFFER:
        return False
    parent, _, last = name.rpartition(".")
    if last in _COMPUTED or _CACHED_ANGLES.fullmatch(last):
        return True
    if any(known.fullmatch(name) for known in (_SINUSOIDS, _CAUSAL_MASK, _UNIT_NORM)):
        return True
    return bool(_INVERSE_FREQUENCIES.fullmatch(last) and _ROTARY_MODULE.fullmatch(parent.rpartition(".")[2]))


def is_vllm_serialized(tensors: Iterable[TensorEntry]) -> bool:
    """Returns whether vLLM serialized a file of these tensors: it has a meta parameter of the root module as a mark.

    Such a file has the tensors of vLLM's own modules, with names and shapes that other engines don't know.
    """
    return any(tensor.name == VLLM_MARKER and tensor.is_meta and tensor.kind == KIND_PARAMETER for tensor in tensors)


def find_undecided_buffers(tensors: Iterable[TensorEntry]) -> list[TensorEntry]:
    """Returns the buffers of vLLM's modules whose names don't show whether they are state or computed."""
    return [
        tensor
        for tensor in tensors
        if tensor.kind == KIND_BUFFER
        and not is_computed_buffer(tensor.name, tensor.kind)
        and tensor.name.rpartition(".")[2] not in _STATE_OF_VLLM
    ]


def find_held_twice(tensors: Iterable[TensorEntry]) -> list[TensorEntry]:
    """Returns tensors of modules that vLLM's models hold in two places, some in all versions and some in newer ones.

    tensorizer writes such a module by the name where it comes first, and ``sharded_state`` looks for the first name in
    alphabetical order, which may be the other one.
    """
    return [tensor for tensor in tensors if _HELD_TWICE.fullmatch(tensor.name)]


def is_quantized(tensors: Iterable[TensorEntry]) -> bool:
    """Returns whether a model's parameters have numbers of 8 bits, or packed ones: vLLM post-processes such weights."""
    return any(
        _QUANTIZED.fullmatch(tensor.dtype.torch_name) and tensor.kind == KIND_PARAMETER and not tensor.is_meta
        for tensor in tensors
    )


def find_fused_experts(tensors: Sequence[TensorEntry]) -> list[TensorEntry]:
    """Returns the experts' weights that have names of transformers 5 in memory, which differ from those of checkpoints.

    transformers 5 holds all experts of a layer in one tensor of three dimensions. Models whose checkpoints have such
    tensors, too, are not meant: gpt-oss (which has ``gate_up_proj_bias``) and Llama 4 (``feed_forward`` with a shared
    expert).
    """
    names = {tensor.name for tensor in tensors}
    found = []
    for tensor in tensors:
        match = _FUSED_EXPERTS.fullmatch(tensor.name)
        in_checkpoints = match is not None and (
            (
                f"{match['module']}.shared_expert.up_proj.weight" in names
                and match["module"].rpartition(".")[2] == "feed_forward"
            )
            or f"{tensor.name}_bias" in names
            or f"{tensor.name}_blocks" in names
        )
        if match is not None and not in_checkpoints and len(tensor.shape) == 3:
            found.append(tensor)
    return found


def find_wrapper(tensors: Sequence[TensorEntry]) -> tuple[str, str] | None:
    """Returns what names have in them because a module was wrapped when it was written, and one of these names.

    None if none was. A PEFT adapter is not meant, whose names in checkpoints begin as those of a wrapped model.
    """
    for wrapper in _WHOLE_WRAPPERS:
        if tensors and all(tensor.name.startswith(wrapper) for tensor in tensors):
            is_adapter = wrapper != _WHOLE_WRAPPERS[0] and not any(".base_layer." in tensor.name for tensor in tensors)
            return None if is_adapter else (wrapper, tensors[0].name)
    for tensor in tensors:
        match = _WRAPPERS.fullmatch(tensor.name)
        if match is not None:
            return f"{match['wrapper']}.", tensor.name
    return None
