"""Gives tensors that have transformers' names in memory the names and shapes of the model's checkpoint.

transformers 5 fuses experts, divides or joins other tensors, and renames modules, when it reads a checkpoint. The
mapping is its own: the one by which it reads checkpoints, reversed, as its ``save_pretrained`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PretrainedConfig, PreTrainedModel


def restore_checkpoint(
    tensors: Mapping[str, torch.Tensor], config: PretrainedConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of a checkpoint, without output heads that are its embedding.

    They are views of the given ones, or copies where tensors are joined.

    Args:
        tensors: The tensors of the model, by the names that transformers has in memory.
        config: The model's configuration.

    Raises:
        ImportError: This transformers maps nothing: it is older than version 5.
        ValueError: transformers has no such model, or the names of its checkpoints are the same.
    """
    from transformers.core_model_loading import revert_weight_conversion

    heads = _tied_heads(tensors, config)
    found = revert_weight_conversion(
        _build(config), {name: tensor for name, tensor in tensors.items() if name not in heads}
    )
    if found.keys() == tensors.keys():
        raise ValueError("the names of the model's checkpoints are the same")
    yield from found.items()


def _tied_heads(tensors: Mapping[str, torch.Tensor], config: PretrainedConfig) -> set[str]:
    """Returns the names of output heads that the configuration ties to an embedding, and that are equal to one."""
    if not getattr(config.get_text_config(), "tie_word_embeddings", False):
        return set()
    heads = {name for name in tensors if name.rpartition(".lm_head.")[2].removeprefix("lm_head.") == "weight"}
    embeddings = [name for name in tensors if "embed" in name or "wte" in name]
    return {
        head
        for head in heads
        if any(
            tensors[head].shape == tensors[name].shape and torch.equal(tensors[head], tensors[name])
            for name in embeddings
        )
    }


def _build(config: PretrainedConfig) -> PreTrainedModel:
    """Returns the model without data: of the class that the configuration names, or else a causal one."""
    import transformers

    classes = (getattr(transformers, name, None) for name in config.architectures or ())
    model_class = next((each for each in classes if each is not None), None)
    with torch.device("meta"):
        if model_class is not None:
            built: PreTrainedModel = model_class(config)
            return built
        causal: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        return causal
