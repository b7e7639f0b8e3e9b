"""Writes small models with the libraries that users have: transformers, PEFT, diffusers and tensorizer.

Runs with the Python of hack/env/engines.sh.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from tensorizer import TensorSerializer

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def write_all(folder: Path) -> dict[str, str]:
    """Writes all models below ``folder``: ``<model>/hf`` and ``<model>/<way>/…``; returns nothing of interest."""
    from safetensors.torch import load_file
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        LlamaConfig,
        LlamaForCausalLM,
        MixtralConfig,
        MixtralForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
    )

    layers = {"head_dim": 32, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 32}

    for name, config, model_class in (
        ("llama", LlamaConfig(**SIZES, tie_word_embeddings=False), LlamaForCausalLM),
        ("qwen2", Qwen2Config(**SIZES, tie_word_embeddings=True), Qwen2ForCausalLM),
        ("mixtral", MixtralConfig(**SIZES, num_local_experts=4, tie_word_embeddings=False), MixtralForCausalLM),
        ("gemma2", Gemma2Config(**SIZES, **layers, tie_word_embeddings=True), Gemma2ForCausalLM),
        ("gemma3", Gemma3TextConfig(**SIZES, **layers, tie_word_embeddings=True), Gemma3ForCausalLM),
        ("qwen3-moe", Qwen3MoeConfig(**SIZES, **experts, tie_word_embeddings=False), Qwen3MoeForCausalLM),
    ):
        torch.manual_seed(11)
        config.initializer_range = 0.3  # so that greedy tokens differ from step to step
        model = model_class(config).to(torch.bfloat16).eval()
        model.save_pretrained(folder / name / "hf")
        write_module(model, folder / name / "module" / "model.tensors")
        write_module(model, folder / name / "no-buffers" / "model.tensors", include_non_persistent_buffers=False)
        write_state(load_file(folder / name / "hf" / "model.safetensors"), folder / name / "state" / "model.tensors")
        if name == "llama":
            write_quantized(folder / name / "hf", folder / "llama-fp8")
            write_adapter(model, folder / "lora")
    write_diffusion(folder / "diffusion")
    return {}


def write_module(model: torch.nn.Module, path: Path, **options: bool) -> None:
    """Writes a model as the README of tensorizer does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    serializer = TensorSerializer(str(path))
    serializer.write_module(model, **options)
    serializer.close()


def write_state(state: dict[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    serializer = TensorSerializer(str(path))
    serializer.write_state_dict(state)
    serializer.close()


def write_quantized(source: Path, folder: Path) -> None:
    """Writes a checkpoint with linear layers in FP8, one scale for each, as tools for vLLM write it."""
    from safetensors.torch import load_file, save_file

    largest = torch.finfo(torch.float8_e4m3fn).max
    state = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            state[name] = tensor
            continue
        scale = tensor.float().abs().max() / largest
        state[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        state[f"{name}_scale"] = scale.reshape(1)
    (folder / "hf").mkdir(parents=True)
    save_file(state, folder / "hf" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    (folder / "hf" / "config.json").write_text(json.dumps(config))
    write_state(state, folder / "state" / "model.tensors")


def write_adapter(model: torch.nn.Module, folder: Path) -> None:
    """Writes a LoRA adapter as PEFT does, and its weights as ``.tensors``."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    torch.manual_seed(13)
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(folder / "hf")
    write_state(load_file(folder / "hf" / "adapter_model.safetensors"), folder / "state" / "adapter_model.tensors")


def write_diffusion(folder: Path) -> None:
    from diffusers import UNet2DModel

    torch.manual_seed(17)
    model = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(32, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), norm_num_groups=8,
    ).eval()  # fmt: skip
    model.save_pretrained(folder / "hf")
    write_state(model.state_dict(), folder / "state" / "diffusion_pytorch_model.tensors")
