"""Buffers that engines compute themselves are found by a rule; everything else stays with the weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tonnage.format.known_tensors import (
    find_fused_experts,
    find_wrapper,
    is_computed_buffer,
    is_vllm_serialized,
)
from tonnage.format.tensor_names import KIND_BUFFER, KIND_PARAMETER, KIND_STATE_DICT

COMPUTED = [
    "model.rotary_emb.inv_freq",
    "model.rotary_emb.original_inv_freq",
    "rotary_emb.inv_freq",
    "model.rotary_emb.full_attention_inv_freq",
    "model.rotary_emb.sliding_attention_original_inv_freq",
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.layers.0.self_attn.rotary_emb.cos_sin_cache",
    "model.layers.0.self_attn.rotary_emb.cos_cached",
    "model.layers.0.self_attn.rotary_emb.sin_cached",
    "model.visual.rotary_pos_emb.inv_freq",
    "model.rope_embeddings.inv_freq",
    "decoder.vision_rotary_embedding.inv_freq",
    "model.layers.0.self_attn.rotary_emb.long_short_cos_sin_cache",
    "model.layers.0.self_attn.rotary_emb.cos_sin_cache_bf16",
    "model.layers.0.self_attn.rotary_emb.cos_sin_qc_no_clamp_cache",
    "vision_model.rotary_embedding.freqs_ci",
    "model.embed_tokens.embed_scale",
    "model.normalizer",
    "bert.embeddings.token_type_ids",
    "transformer.h.0.attn.embed_positions",
    "model.encoder.embed_positions.weights",
    "model.language_model.per_layer_projection_scale",
    "model.vision_tower.patch_positional_embedding.original_inv_freq",
    "transformer.bias",
    "transformer.h.0.attn.masked_bias",
    "backbone.layers.0.mixer.dt_layernorm.weight",
    "embeddings.visual_bbox",
]
NOT_COMPUTED = [
    "model.layers.0.attn._k_scale",
    "model.layers.0.self_attn.k_scale",
    "model.layers.3.mlp.gate.e_score_correction_bias",
    "bn.running_mean",
    "bn.running_var",
    "bn.num_batches_tracked",
    "inv_freq",
    "encoder.embed_positions.inv_freq",
    "esm.rotary_embeddings.inv_freq",
    "esm.encoder.layer.0.attention.self.rotary_embeddings.inv_freq",
    "encoder.properties.inv_freq",
    "model.rotary_emb.scale",
    "model.layers.0.layer_scalar",
    "bert.embeddings.position_ids",
    "encoder.embed.weights",
    "quantizer.codebook.embed",
    "layers.0.attention.relative_position_index",
    "model.rotary_emb.inv_freq.weight",
    "model.rotary_emb.proj.inv_freq",
    "model.rotary_emb.my_cos_cached",
    "model.cos_sin_cache.weight",
    "model.layers.0.mlp.gate.bias",
    "model.layers.0.feed_forward.expert_bias",
    "model.layers.0.mixer.norm.weight",
]
WORDS = st.from_regex(r"[a-z_][a-z0-9_]{0,11}", fullmatch=True)
PATHS = st.lists(WORDS, max_size=5).map(".".join)
ENDS = re.compile(
    r"(\w*_)?inv_freq|(cos|sin)_cached|freqs_cis?|\w*cos_sin\w*_cache\w*|embed_scale(_per_layer)?|normalizer|softcap"
    r"|token_type_ids|embed_positions|weights?|gradient_clipping|(per_layer|router)_\w+_scale|(masked_)?bias|visual_bbox"
    r"|\w+_rms"
)
CONFIGS = (
    "llama",
    "qwen2",
    "qwen3_moe",
    "mixtral",
    "gemma2",
    "gemma3_text",
    "gpt_neox",
    "phi3",
    "falcon",
    "olmo2",
    "cohere",
    "glm4_moe",
    "deepseek_v3",
    "gpt_oss",
    "granite",
    "starcoder2",
    "modernbert",
    "esm",
)


@pytest.mark.parametrize("name", COMPUTED)
def test_a_table_of_rotary_positions_is_computed(name: str) -> None:
    assert is_computed_buffer(name, KIND_BUFFER)


@pytest.mark.parametrize("name", NOT_COMPUTED)
def test_every_other_buffer_stays(name: str) -> None:
    assert not is_computed_buffer(name, KIND_BUFFER)


@given(st.sampled_from(COMPUTED) | PATHS, st.sampled_from([KIND_PARAMETER, KIND_STATE_DICT]))
def test_only_buffers_are_computed(name: str, kind: int) -> None:
    assert not is_computed_buffer(name, kind)


@given(PATHS, st.sampled_from(COMPUTED + NOT_COMPUTED[:6]))
def test_the_place_in_a_model_does_not_matter(path: str, name: str) -> None:
    assert is_computed_buffer(f"{path}.{name}", KIND_BUFFER) == is_computed_buffer(name, KIND_BUFFER)


@given(PATHS, WORDS, WORDS)
def test_only_known_names_are_computed_and_frequencies_only_below_rotary_modules(
    path: str, parent: str, last: str
) -> None:
    if is_computed_buffer(f"{path}.{parent}.{last}", KIND_BUFFER):
        assert ENDS.fullmatch(last)
    for frequencies in ("inv_freq", "original_inv_freq", f"{last}_inv_freq"):
        words = parent.split("_")
        expected = ("rotary" in words or "rope" in words) and parent != "rotary_embeddings"
        expected = expected or parent == "patch_positional_embedding"
        assert is_computed_buffer(f"{path}.{parent}.{frequencies}", KIND_BUFFER) == expected


@pytest.mark.parametrize("model_type", CONFIGS)
def test_in_models_of_transformers_exactly_buffers_outside_the_state_dict_are_computed(model_type: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    small: Any = {"num_hidden_layers": 4, "vocab_size": 128, "hidden_size": 64, "num_attention_heads": 4}
    if model_type == "esm":
        small["position_embedding_type"] = "rotary"
    config = AutoConfig.for_model(model_type, **small, pad_token_id=0)
    factory: Any = AutoModelForMaskedLM if model_type in {"esm", "modernbert"} else AutoModelForCausalLM
    with torch.device("meta"):
        model = factory.from_config(config)
    in_state = set(model.state_dict())
    buffers = {name for name, _ in model.named_buffers()}
    computed = {name for name in buffers if is_computed_buffer(name, KIND_BUFFER)}
    assert not computed & in_state
    assert {name for name in buffers - in_state if "freq" in name or "embed_scale" in name} == computed
    assert computed or "rotary_embeddings.inv_freq" in {".".join(name.split(".")[-2:]) for name in in_state}


@pytest.mark.parametrize(
    ("name", "kind", "is_meta", "expected"),
    [
        ("vllm_tensorized_marker", KIND_PARAMETER, True, True),
        ("vllm_tensorized_marker", KIND_PARAMETER, False, False),
        ("vllm_tensorized_marker", KIND_STATE_DICT, True, False),
        ("model.vllm_tensorized_marker", KIND_PARAMETER, True, False),
    ],
)
def test_the_mark_of_vllm_is_a_meta_parameter_of_the_root_module(
    name: str, kind: int, *, is_meta: bool, expected: bool
) -> None:
    class Tensor:
        def __init__(self) -> None:
            self.name, self.kind, self.is_meta = name, kind, is_meta

    tensors: Any = [Tensor()]
    assert is_vllm_serialized(tensors) is expected


class Named:
    """A tensor of which only name and shape matter."""

    def __init__(self, name: str, shape: tuple[int, ...] = (4, 8, 8)) -> None:
        self.name, self.shape = name, shape


def named(*names: str) -> Any:
    return [Named(name) for name in names]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"], 1),
        (["model.layers.0.block_sparse_moe.experts.gate_up_proj"], 1),
        (["layers.0.mlp.experts.gate_up_proj", "layers.0.mlp.experts.gate_up_proj_bias"], 0),
        (["layers.0.feed_forward.experts.gate_up_proj", "layers.0.feed_forward.experts.down_proj"], 1),  # LFM2, Jamba
        (["feed_forward.experts.gate_up_proj", "feed_forward.shared_expert.up_proj.weight"], 0),  # Llama 4
        (["mlp.experts.gate_up_proj", "mlp.shared_expert.up_proj.weight"], 1),  # Qwen2-MoE
        (["backbone.layers.1.mixer.experts.up_proj", "backbone.layers.1.mixer.experts.down_proj"], 1),  # Nemotron-H
        (["layers.0.mlp.gate_up_proj.weight", "layers.0.mlp.experts.0.gate_proj.weight"], 0),
    ],
)
def test_fused_experts_are_found_unless_checkpoints_have_them_too(names: list[str], expected: int) -> None:
    assert len(find_fused_experts(named(*names))) == expected
    assert find_fused_experts([Named(name, (4, 8)) for name in names]) == []  # type: ignore[misc]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["module.a", "module.b"], ("module.", "module.a")),
        (["module.a", "b"], None),
        (["encoder.module.a"], None),
        (["_orig_mod.a"], ("_orig_mod.", "_orig_mod.a")),
        (["norm.a", "layers.0._orig_mod.a"], ("_orig_mod.", "layers.0._orig_mod.a")),
        (["_fsdp_wrapped_module.a"], ("_fsdp_wrapped_module.", "_fsdp_wrapped_module.a")),
        (
            ["layers.0._checkpoint_wrapped_module.a"],
            ("_checkpoint_wrapped_module.", "layers.0._checkpoint_wrapped_module.a"),
        ),
        (
            ["base_model.model.q.base_layer.weight", "base_model.model.q.lora_A.default.weight"],
            ("base_model.model.", "base_model.model.q.base_layer.weight"),
        ),
        (["base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"], None),
        (["model.layers.0.forward_module_norm.a", "a_orig_mod.b"], None),
        ([], None),
    ],
)
def test_names_of_a_wrapped_module_are_found(names: list[str], expected: tuple[str, str] | None) -> None:
    assert find_wrapper(named(*names)) == expected
